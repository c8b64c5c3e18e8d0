#!/bin/sh
# Runs a kubelet in a mount namespace of its own, in which /var is empty and the kernel's settings are what a kubelet wants: it writes
# to places that no flag moves, and sets what is otherwise. What it mounts below ROOT is seen by containerd all the same.
set -eu
root=${1:?usage: own-var.sh ROOT COMMAND...}
shift
mkdir -p "$root"
mount --bind "$root" "$root"
mount --make-shared "$root"
export ROOT="$root"
exec unshare --mount --propagation unchanged sh -eu -c '
for path in / /var /proc/sys; do
  mount --make-private "$(findmnt --noheadings --output TARGET --target "$path" | tail -n 1)"
done
mount -t tmpfs tmpfs /var
mkdir /var/settings
while read -r setting value; do
  [ -e "/proc/sys/$setting" ] || continue
  file=/var/settings/$(basename "$setting")
  echo "$value" >"$file"
  mount --bind "$file" "/proc/sys/$setting"
done <<EOF
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
EOF
exec "$@"
' sh "$@"
