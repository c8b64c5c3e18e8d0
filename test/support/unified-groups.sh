#!/bin/sh
# Runs a command in a mount namespace of its own where the machine has version 2 of control groups and nothing else. Where version 1 has
# the controllers, groups of version 2 have none: processes can be put into them, found and killed, but not limited.
set -eu
: "${1:?usage: unified-groups.sh COMMAND...}"
exec unshare --mount --propagation unchanged sh -eu -c '
mount --make-rprivate /sys
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec "$@"
' sh "$@"
