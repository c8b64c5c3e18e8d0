import { writeSync } from 'node:fs'
import files from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
import { DatabaseSync, StatementSync } from 'node:sqlite'
import { ContentStore } from '../../../snapshotter/content-store.ts'
import { NOTHING_PUBLISHED } from '../../support/content-client.ts'
import { uploadOf } from './kill-script.ts'

// Uploads blob after blob from a number on and kills itself instead of the n-th thing that would change the disk. Says on stdout
// which are acknowledged, by number, once they are.
const [root = '', seed = '', from = '', effects = ''] = process.argv.slice(2)

let left = Number(effects)
function watch<Name extends string>(
  object: Record<Name, (...args: never[]) => unknown>,
  name: Name,
): void {
  const original = object[name]
  object[name] = function (this: unknown, ...args: never[]): unknown {
    left -= 1
    if (left === 0) process.kill(process.pid, 'SIGKILL')
    return original.apply(this, args)
  }
}

for (const name of ['mkdir', 'chmod', 'link', 'rm', 'writeFile', 'open'] as const)
  watch(files, name)
syncBuiltinESMExports()
watch(DatabaseSync.prototype, 'exec')
watch(StatementSync.prototype, 'run')

const store = await ContentStore.open(
  { root: `${root}/content`, recordsPath: `${root}/content.db` },
  { published: NOTHING_PUBLISHED, log: { info: () => undefined } },
)
for (let index = Number(from); ; index++) {
  const { ref, pieces, digest, size, labels } = uploadOf(Number(seed), index)
  await using writer = await store.write({ ref, total: size, expected: digest })
  let { offset } = writer.status
  let start = 0
  for (const piece of pieces) {
    if (offset < start + piece.length) await writer.write(piece.subarray(offset - start))
    start += piece.length
    offset = Math.max(offset, start)
  }
  await writer.commit({ size, expected: digest, labels })
  writeSync(1, `${index}\n`)
}
