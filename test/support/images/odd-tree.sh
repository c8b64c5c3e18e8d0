#!/bin/sh
# Makes a tree of files that a layer may hold and that are easily got wrong, in the folder given. Needs root.
set -eu
umask 022
cd "${1:?usage: odd-tree.sh FOLDER}"

mkdir links modes devices owners names sizes sparse times xattrs

# Hard links: within a folder, across folders, to a file with attributes, three names of an empty file.
echo 'one file, three names' >links/first
ln links/first links/second
ln links/first modes/third
: >links/empty-1
ln links/empty-1 links/empty-2
ln links/empty-1 links/empty-3

# Symbolic links: relative, absolute, dangling, to itself, out of the root, with a target over tar's 100 bytes.
ln -s first links/relative
ln -s /links/first links/absolute
ln -s nowhere links/dangling
ln -s myself links/myself
ln -s ../../../../../../etc/passwd links/outside
ln -s "$(printf 'd%.0s' $(seq 250))/$(printf 'f%.0s' $(seq 250))" links/long-target
ln -s ../modes links/to-folder

for mode in 0000 0111 0444 0600 0666 0755 0777 1777 2755 4755 6711 7777; do
  echo "$mode" >"modes/file-$mode"
  chmod "$mode" "modes/file-$mode"
  mkdir "modes/folder-$mode"
  chmod "$mode" "modes/folder-$mode"
done

mknod devices/null c 1 3
mknod devices/zero-minor c 5 0
mknod devices/large-numbers c 4000 1000000
mknod devices/disk b 8 17
mkfifo devices/fifo
chmod 620 devices/fifo
chown 7:8 devices/fifo devices/disk

# 65536 needs more than 16 bits, 2097152 more than the seven octal digits of a tar header.
for id in 1 65534 65535 65536 100000 2097151 2097152 4294967294; do
  echo "$id" >"owners/file-$id"
  chown "$id:$id" "owners/file-$id"
  ln -s "file-$id" "owners/link-$id"
  chown -h "$id:0" "owners/link-$id"
done
mkdir owners/folder
chown 70000:80000 owners/folder

# Names: 99 to 101 and 255 bytes, deep paths over 100, 256 and 1,000 bytes, bytes that are no text, dots, stars.
for length in 99 100 101 155 156 255; do
  : >"names/$(printf 'n%.0s' $(seq "$length"))"
done
deep=names/deep
for level in 1 2 3 4 5 6 7 8 9 10 11 12; do
  deep="$deep/level-$level-$(printf 'x%.0s' $(seq 90))"
done
mkdir -p "$deep"
echo 'found' >"$deep/file"
ln "$deep/file" "$deep/hard-link"
: >'names/ leading and trailing '
: >"names/$(printf 'new\nline')"
: >"names/$(printf 'tab\there')"
: >"names/$(printf 'not-utf8-\377\376')"
: >'names/back\slash'
: >'names/"quoted"'
: >'names/*'
: >'names/-dash'
: >'names/...'
: >'names/.hidden'
: >'names/.wherever'
: >'names/ünïcödé-文件-🗂'
: >'names/key=value'

# Sizes around the blocks of tar and of file systems.
for size in 0 1 511 512 513 4095 4096 4097 65535 65536 65537 1048577; do
  yes "$size" | head -c "$size" >"sizes/$size"
done
mkdir sizes/empty-folder
mkdir sizes/many
for number in $(seq 600); do echo "$number" >"sizes/many/$number"; done

truncate -s 1M sparse/only-a-hole
truncate -s 3M sparse/islands
for offset in 0 65536 1000000 2000000 3145000; do
  printf 'island at %d' "$offset" | dd of=sparse/islands bs=1 seek="$offset" conv=notrunc status=none
done
yes data | head -c 100000 >sparse/hole-at-the-end
truncate -s 2M sparse/hole-at-the-end
# More pieces than the 21 that follow an old GNU header.
truncate -s 4M sparse/many-pieces
for piece in $(seq 0 63); do
  printf 'piece %d' "$piece" | dd of=sparse/many-pieces bs=1 seek=$((piece * 65536)) conv=notrunc status=none
done

: >times/epoch
touch -d '1970-01-01T00:00:00Z' times/epoch
: >times/nanoseconds
touch -d '2001-02-03T04:05:06.123456789Z' times/nanoseconds
: >times/last-nanosecond
touch -d '2001-02-03T04:05:06.999999999Z' times/last-nanosecond
: >times/after-2038
touch -d '2040-06-07T08:09:10Z' times/after-2038
: >times/after-2106
touch -d '2200-06-07T08:09:10.5Z' times/after-2106
ln -s epoch times/link
touch -h -d '2011-12-13T14:15:16.000000001Z' times/link

cp /bin/true xattrs/capable
setcap cap_net_bind_service,cap_net_raw=ep xattrs/capable
: >xattrs/user
setfattr -n user.plain -v value xattrs/user
setfattr -n user.empty xattrs/user
setfattr -n user.binary -v 0x00ff0a3d00 xattrs/user
setfattr -n user.long -v "$(printf 'v%.0s' $(seq 3000))" xattrs/user
setfattr -n 'user.with space' -v x xattrs/user
setfattr -n trusted.note -v secret xattrs/user
mkdir xattrs/folder
setfattr -n user.on-folder -v yes xattrs/folder
for number in $(seq 20); do
  : >"xattrs/same-$number"
  setfattr -n user.shared -v 'the same value in twenty files' "xattrs/same-$number"
done

# What has no time of its own above gets one with nanoseconds, so that it is the same in every run.
find . -not -path './times/*' -exec touch -h -d '2015-05-15T15:15:15.151515151Z' {} +
