#!/bin/sh
# Runs a command with settings of the kernel that are what a kubelet wants, as it sees them: it sets what is otherwise. To be called in
# a mount namespace that nobody else is in; FOLDER is for files.
set -eu
folder=${1:?usage: own-settings.sh FOLDER COMMAND...}
shift
mkdir -p "$folder"
while read -r setting value; do
  [ -e "/proc/sys/$setting" ] || continue
  file=$folder/$(basename "$setting")
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
