#!/bin/sh
# Makes a node of an unpacked Debian, as README "On a node" says. Everything is in place but what needs a program of that Debian.
# TREE: the root file system. SOURCES: the agent's tree. PACKAGES: a folder with its node_modules. NODE: the program. CONFIG: its configuration.
set -eu

here=$(dirname "$0")
agent=$TREE/opt/ipdr-agent
mkdir -p "$agent" "$TREE/etc/ipdr-agent" "$TREE/usr/local/bin" "$TREE/usr/local/sbin"

# 1. Node 24 and the agent.
cp "$NODE" "$TREE/usr/local/bin/node"
for part in agent snapshotter proto node-image package.json package-lock.json; do
  cp -R "$SOURCES/$part" "$agent/"
done
cp -R "$PACKAGES/node_modules" "$agent/"
for name in ipdr ipdr-agent; do
  ln -s "/opt/ipdr-agent/agent/cli/bin/$name" "$TREE/usr/local/bin/$name"
done

# 2. Its configuration.
printf '%s\n' "$CONFIG" >"$TREE/etc/ipdr-agent/config.json"

# 3. The unit and the udev rules.
cp "$SOURCES/node-image/systemd/ipdr-agent.service" "$TREE/etc/systemd/system/"
cp "$SOURCES/node-image/udev/59-ipdr-agent.rules" "$TREE/etc/udev/rules.d/"

# 4. containerd: our lines behind those of Debian's own file, which says its version as well.
grep -v '^version = ' "$SOURCES/node-image/containerd/config-1.7.toml" >>"$TREE/etc/containerd/config.toml"
cp -R "$SOURCES/node-image/containerd/certs.d" "$TREE/etc/containerd/"

# The machine around it: a network, and a way in for the test.
cp "$here/50-virtual.network" "$TREE/etc/systemd/network/"
mkdir -p "$TREE/etc/systemd/system.conf.d"
cp "$here/slow-machine.conf" "$TREE/etc/systemd/system.conf.d/"
mkdir -p "$agent/test/support/virtual-node/guest"
cp "$here/pull-image.ts" "$agent/test/support/virtual-node/guest/"
cp "$here/answer-commands.sh" "$TREE/usr/local/sbin/"
cp "$here/answer-commands.service" "$TREE/etc/systemd/system/"
echo node >"$TREE/etc/hostname"
echo 0123456789abcdef0123456789abcdef >"$TREE/etc/machine-id"
# A log that is still there after a reboot.
mkdir -p "$TREE/var/log/journal"
chroot "$TREE" systemctl --quiet enable ipdr-agent answer-commands systemd-networkd
chroot "$TREE" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer
