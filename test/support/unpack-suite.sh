#!/bin/sh
# Unpacks packages of another suite of Debian, with the C library they need, into the folder given; installs nothing.
# The mirror is the one this machine's apt uses.
set -eu

usage='usage: unpack-suite.sh FOLDER SUITE PACKAGE...'
folder=${1:?$usage}
suite=${2:?$usage}
shift 2

[ "$(cat "$folder/complete" 2>/dev/null)" != "$*" ] || exit 0
rm -rf "$folder"
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/root"
folder=$(cd "$folder" && pwd)

codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
  awk -v codename="$codename" '$1 == codename && $2 == "main" { print $3; exit }')
if [ -z "$mirror" ]; then
  echo "apt on this machine names no mirror for $codename main: add one to its sources, then try again" >&2
  exit 1
fi

: > "$folder/apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$folder/apt/sources.list"
cat > "$folder/apt/apt.conf" <<CONF
Dir::State "$folder/apt";
Dir::State::lists "$folder/apt/lists";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt";
Dir::Cache::archives "$folder/apt/archives";
Dir::Etc::sourcelist "$folder/apt/sources.list";
Dir::Etc::sourceparts "-";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
CONF

export APT_CONFIG="$folder/apt/apt.conf"
apt-get -qq update
# With an empty dpkg status every dependency counts as missing, so the libraries come along.
apt-get -qq --yes --download-only install "$@"
for package in "$folder"/apt/archives/*.deb; do
  dpkg-deb -x "$package" "$folder/root"
done
rm -rf "$folder/apt"
echo "$*" > "$folder/complete"
