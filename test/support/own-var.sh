#!/bin/sh
# Runs a kubelet in a mount namespace of its own, in which /var is empty and the kernel's settings are what a kubelet wants: it writes
# to places that no flag moves, and sets what is otherwise. What it mounts below ROOT is seen by containerd all the same.
set -eu
root=${1:?usage: own-var.sh ROOT COMMAND...}
settings=$(dirname "$(realpath "$0")")/own-settings.sh
shift
mkdir -p "$root"
mount --bind "$root" "$root"
mount --make-shared "$root"
exec unshare --mount --propagation unchanged sh -eu -c '
for path in / /var /proc/sys; do
  mount --make-private "$(findmnt --noheadings --output TARGET --target "$path" | tail -n 1)"
done
mount -t tmpfs tmpfs /var
exec "$@"
' sh "$settings" /var/settings "$@"
