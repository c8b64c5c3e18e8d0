#!/bin/sh
# Builds the daemon in main.go beside this, in the version of stargz-snapshotter that go.mod names, and prints where it is. Half a minute,
# once, and 1 GB for modules and cache of Go.
set -eu

build=${1:?usage: build.sh FOLDER}
mkdir -p "$build"
build=$(cd "$build" && pwd)
cd "$(dirname "$0")"

version=$(sed -n 's#^.*containerd/stargz-snapshotter v\([0-9.]*\)$#\1#p' go.mod)
folder=$build/stargz-snapshotter-$version
path=$folder/stargz-snapshotter
mkdir -p "$folder"

# Test files run side by side: one of them builds, the others wait for it.
exec 9>"$folder/lock"
flock 9
if [ ! -x "$path" ] || [ main.go -nt "$path" ] || [ go.mod -nt "$path" ]; then
  if ! command -v go >/dev/null; then
    echo "stargz-snapshotter has to be built, and there is no Go: install 1.25 or newer, and have it in PATH" >&2
    exit 1
  fi
  export GOTOOLCHAIN=local CGO_ENABLED=0
  if ! go mod download >&2; then
    echo "stargz-snapshotter has to be built, and its Go modules cannot be had: see which proxy 'go env GOPROXY' names" >&2
    exit 1
  fi
  nice -n 15 go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$path.partial" . 9>&- >&2
  mv "$path.partial" "$path"
fi
echo "$path"
