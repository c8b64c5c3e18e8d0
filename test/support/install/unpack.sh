#!/bin/sh
# Unpacks packages of Debian, by default containerd, runc, registry, busybox and libfaketime, into the folder given, and installs nothing. Installed,
# the first and third would be started and enabled as services, the first would take the place of Docker's
# containerd.io, and busybox-static that of busybox.
set -eu

folder=${1:?usage: unpack.sh FOLDER [PACKAGES]}
packages=${2:-containerd runc docker-registry busybox-static libfaketime}

[ "$(cat "$folder/unpacked" 2>/dev/null)" != "$packages" ] || exit 0
rm -rf "$folder"
mkdir -p "$folder/archives"
cd "$folder"

download() {
  # shellcheck disable=SC2086 # a list of names
  (cd archives && apt-get download -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 $packages) >log 2>&1
}

echo "Debian packages: unpacking $packages …"
if ! download; then
  apt-get update -qq -o Acquire::Retries=3 >log 2>&1 && download || {
    cat log >&2
    echo "apt could not download: $packages" >&2
    exit 1
  }
fi
for archive in archives/*.deb; do
  dpkg-deb --extract "$archive" .
done
rm -rf archives log
echo "$packages" >unpacked
