import { writeSync } from 'node:fs'
import files from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
import { DatabaseSync, StatementSync } from 'node:sqlite'
import { Snapshots } from '../../../snapshotter/snapshots/snapshots.ts'
import { noLazyLayers } from '../../support/no-lazy-layers.ts'
import { step } from './kill-script.ts'

// Runs the script from a step on and kills itself instead of the n-th thing that would change the disk. Says on stdout
// which step it begins, before it does.
const [root = '', seed = '', from = '', effects = ''] = process.argv.slice(2)

let left = Number(effects)
function countDown(): void {
  left -= 1
  if (left === 0) process.kill(process.pid, 'SIGKILL')
}

/** Has `object[name]` count down before it does what it did. */
function watch<Name extends string>(
  object: Record<Name, (...args: never[]) => unknown>,
  name: Name,
): void {
  const original = object[name]
  object[name] = function (this: unknown, ...args: never[]): unknown {
    countDown()
    return original.apply(this, args)
  }
}

for (const name of ['mkdir', 'chmod', 'chown', 'rm', 'rename'] as const) watch(files, name)
syncBuiltinESMExports()
watch(DatabaseSync.prototype, 'exec')
watch(StatementSync.prototype, 'run')

const { signal } = new AbortController()
const snapshots = await Snapshots.open(
  { root },
  { layers: noLazyLayers, log: { warn: () => undefined } },
)
for (let index = Number(from); ; index++) {
  writeSync(1, `${index}\n`)
  await step(Number(seed), index)
    .run(snapshots, signal)
    .catch(() => undefined)
}
