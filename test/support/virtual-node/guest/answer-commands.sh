#!/bin/sh
# Runs each command that comes in on QEMU's port, a line in base64, and answers with its exit code and what it printed.
exec 3<>/dev/virtio-ports/ipdr.commands
echo "up $(cat /proc/sys/kernel/random/boot_id)" >&3
while IFS= read -r line <&3; do
  echo "$line" | base64 --decode >/run/command
  sh /run/command >/run/command.output 2>&1 </dev/null 3>&-
  echo "$? $(base64 --wrap=0 /run/command.output)" >&3
done
