#!/bin/sh
# Runs a shell snippet in a mount namespace of its own, in which `inside COMMAND...` runs programs of the root given, with this
# machine's /proc, /sys, /dev, /run and /tmp in it: for programs that run themselves again, which a loader on the command line spoils.
set -eu
root=${1:?usage: in-own-root.sh ROOT SNIPPET [ARGUMENT...]}
snippet=$2
shift 2
# What the scripts of packages would have made: the names of Debian's merged /usr, and a user.
for name in bin sbin lib lib64; do
  [ -e "$root/$name" ] || ln -s "usr/$name" "$root/$name"
done
mkdir -p "$root/var/tmp" "$root/etc"
[ -e "$root/etc/passwd" ] || echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
export OWN_ROOT="$root"
exec unshare --mount --propagation private sh -eu -c '
mount --bind "$OWN_ROOT" "$OWN_ROOT"
for directory in proc sys dev run tmp; do
  mkdir -p "$OWN_ROOT/$directory"
  mount --rbind "/$directory" "$OWN_ROOT/$directory"
done
inside() { chroot "$OWN_ROOT" "$@"; }
'"$snippet" sh "$@"
