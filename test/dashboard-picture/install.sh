#!/bin/sh
# Installs what draws the dashboard, beside this file, and says what else is missing.
set -eu
here=$(dirname "$(realpath "$0")")
missing=
for program in chromium prometheus; do
  command -v "$program" >/dev/null || missing="$missing $program"
done
[ -z "$missing" ] || {
  echo "dashboard-picture: missing:$missing. Install them: apt-get install --no-install-recommends chromium prometheus" >&2
  exit 1
}
[ "$here/node_modules/.package-lock.json" -nt "$here/package-lock.json" ] ||
  npm ci --prefix "$here" --ignore-scripts --legacy-peer-deps --no-audit --no-fund --loglevel=error
