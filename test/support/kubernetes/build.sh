#!/bin/sh
# Builds a program of Kubernetes from its Go modules, in the version that go.mod beside this names, and prints where
# it is. No distribution packages them. Takes five minutes on two idle cores, once, and 3 GB for modules and cache of Go.
set -eu

build=${1:?usage: build.sh FOLDER PROGRAM}
program=${2:?usage: build.sh FOLDER PROGRAM}
mkdir -p "$build"
build=$(cd "$build" && pwd)
cd "$(dirname "$0")"

version=$(sed -n 's#^.*k8s.io/kubernetes v\([0-9.]*\).*#\1#p' go.mod)
folder=$build/kubernetes-$version
path=$folder/$program
mkdir -p "$folder"

# Test files run side by side: one of them builds, the others wait for it.
exec 9>"$folder/lock"
flock 9
if [ ! -x "$path" ]; then
  if ! command -v go >/dev/null; then
    echo "$program has to be built, and there is no Go: install 1.24 or newer, and have it in PATH" >&2
    exit 1
  fi
  export GOTOOLCHAIN=local CGO_ENABLED=0
  if ! go mod download >&2; then
    echo "$program has to be built, and its Go modules cannot be had: see which proxy 'go env GOPROXY' names" >&2
    exit 1
  fi
  echo "$program $version: building, five minutes or more …" >&2
  nice -n 15 go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$version" \
    -o "$path.partial" "k8s.io/kubernetes/cmd/$program" 9>&- >&2
  mv "$path.partial" "$path"
fi
echo "$path"
