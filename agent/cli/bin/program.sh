# Sourced by the programs here: `node`, and as `program` the file to run, from `root`, `source` and the name `built`.
node="$root/node_modules/node/bin/node"
[ -x "$node" ] || node=node

# What was built is run unless a source is newer. Sources run as they are too, with more time and memory: Node 24 strips the types.
program="$root/build/program/$built.js"
if [ -f "$root/$source" ]; then
  newer=$source
  [ ! -f "$program" ] || newer=$(cd "$root" &&
    find agent snapshotter proto node-image/build-program.ts package-lock.json \
      '(' -name '*.ts' -o -name package-lock.json ')' -newer "$program" -print -quit)
  [ -z "$newer" ] || program="$root/$source"
fi
