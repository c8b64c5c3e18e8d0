#!/bin/sh
# Builds a program from the Go module in MODULE, whose go.mod names the versions, and prints where it is: of peers that no distribution
# packages. Once for each state of MODULE; needs gigabytes for Go's modules and cache.
set -eu

usage='usage: build-go.sh BUILD MODULE PACKAGE [LDFLAGS [test]]'
build=${1:?$usage}
module=${2:?$usage}
package=${3:?$usage}
ldflags=${4:-}
# A suite of tests is a program too.
verb=build
[ "${5:-}" != test ] || verb='test -c'
mkdir -p "$build"
build=$(cd "$build" && pwd)
cd "$module"

name=$(basename "$PWD")
program=$name
[ "$package" = . ] || program=$(basename "$package")
folder=$build/$name-$(find . -type f | LC_ALL=C sort | xargs cat | sha256sum | cut -c 1-16)
path=$folder/$program
mkdir -p "$folder"

# Test files run side by side: one of them builds, the others wait for it.
exec 9>"$folder/lock"
flock 9
if [ ! -x "$path" ]; then
  if ! command -v go >/dev/null; then
    echo "$program has to be built, and there is no Go: install 1.26.6 or newer, and have it in PATH" >&2
    exit 1
  fi
  export GOTOOLCHAIN=local CGO_ENABLED=0
  if ! go mod download >&2; then
    echo "$program has to be built, and its Go modules cannot be had: see which proxy 'go env GOPROXY' names" >&2
    exit 1
  fi
  echo "building $program …" >&2
  # shellcheck disable=SC2086 # words
  nice -n 15 go $verb -trimpath -buildvcs=false -ldflags "-s -w $ldflags" -o "$path.partial" "$package" 9>&- >&2
  mv "$path.partial" "$path"
fi
echo "$path"
