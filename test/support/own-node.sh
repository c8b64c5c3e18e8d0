#!/bin/sh
# Runs a command in a mount namespace that is like a node of its own: /var and /run are folders of a test, what is written to /etc is seen
# there alone, /run/containerd is that of its containerd, settings of the kernel are as a kubelet wants them, and mounts are shared, as systemd has it.
# None of them is seen outside, and none of other tests inside, where a copy would hold what they unmount.
set -eu
usage='usage: own-node.sh DISK RUN CONTAINERD_RUN COMMAND...'
disk=${1:?$usage}
run=${2:?$usage}
containerd=${3:?$usage}
shift 3
settings=$(dirname "$(realpath "$0")")/own-settings.sh
mkdir -p "$disk/var" "$disk/etc" "$disk/etc-work" "$run/ipdr-test" "$run/containerd" "$containerd"
exec unshare --mount --propagation slave sh -eu -c '
disk=$1 run=$2 containerd=$3
shift 3
findmnt --raw --noheadings --output TARGET | grep -E "^/(tmp|run)/ipdr-test/" | tac | while read -r mount; do
  umount --lazy "$mount"
done
mount --bind "$disk/var" /var
mount -t overlay -o "lowerdir=/etc,upperdir=$disk/etc,workdir=$disk/etc-work" overlay /etc
# Sockets of the tests keep their paths.
mount --rbind /run/ipdr-test "$run/ipdr-test"
mount --rbind "$run" /run
mount --make-rshared /
# Only now: what containerd mounts there is to be seen at both paths.
mount --bind "$containerd" /run/containerd
exec "$@"
' sh "$disk" "$run" "$containerd" "$settings" "$disk/settings" "$@"
