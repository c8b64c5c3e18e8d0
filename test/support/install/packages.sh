#!/bin/sh
# Installs the Debian packages that the tests and the demo call and that are missing. None of them is a daemon:
# those come from unpack.sh, which installs nothing.
set -eu

packages='
  attr
  ca-certificates
  chromium
  iproute2
  libcap2-bin
  libseccomp2
  mmdebstrap
  openssl
  python3
  skopeo
  zstd
'

missing=
for package in $packages; do
  state=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "these Debian packages are missing, and only root can install them:$missing" >&2
  exit 1
fi

install() {
  # shellcheck disable=SC2086 # a list of names
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq \
    -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 $missing </dev/null >"$log" 2>&1
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "Debian packages: installing$missing …"
# The lists may be absent or out of date: fetch them once, if the first attempt fails.
if ! install; then
  apt-get update -qq -o Acquire::Retries=3 >"$log" 2>&1 && install || {
    cat "$log" >&2
    echo "apt could not install:$missing" >&2
    exit 1
  }
fi
echo 'Debian packages: installed'
