#!/bin/sh
# Installs the npm packages of package-lock.json, and makes sure that Node 24 came with them.
set -eu
cd "$(dirname "$0")/../../.."

node=node_modules/node/bin/node

echo 'npm packages: installing, about a minute …'
# Errors only: npm itself runs on the system's older Node, of which it would warn for every package.
npm ci --no-audit --no-fund --loglevel=error

# The package `node` fetches its binary in an install script, which npm may have been told not to run.
[ -x "$node" ] || (cd node_modules/node && node installArchSpecificPackage.js)

"$node" --eval '
  const [major, minor] = process.versions.node.split(".").map(Number)
  if (major < 24 || (major === 24 && minor < 12)) {
    console.error(`Node ${process.versions.node} is too old: sources run directly from 24.12 on`)
    process.exit(1)
  }'
echo "npm packages: installed, with Node $("$node" --version)"
