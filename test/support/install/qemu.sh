#!/bin/sh
# Says what `make test-node` needs and this machine does not have. It installs nothing: QEMU brings a hundred packages.
set -eu

if [ "$(uname -m)" != x86_64 ]; then
  echo 'test-node: its node is one of x86-64, and runs nowhere else' >&2
  exit 1
fi
missing=
for program in qemu-system-x86_64 mke2fs mmdebstrap; do
  command -v "$program" >/dev/null || missing="$missing $program"
done
[ -z "$missing" ] || {
  echo "test-node: missing:$missing. Install them: apt-get install --no-install-recommends qemu-system-x86 e2fsprogs mmdebstrap" >&2
  exit 1
}
