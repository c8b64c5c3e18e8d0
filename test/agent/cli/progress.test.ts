import { spawn } from 'node:child_process'
import { expect, test } from 'vitest'
import { type ItemProgress, Progress, type ProgressStyle } from '../../../agent/cli/progress.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { FakeAgent } from './support/fake-agent.ts'
import { ended, IPDR } from './support/run-ipdr.ts'

const MIB = 1024 * 1024

/** What a style says of these updates, each so many ms after the start. */
function said(
  style: ProgressStyle,
  updates: readonly (readonly [ms: number, ItemProgress])[],
): string {
  let [text, now] = ['', 0]
  const stream = { write: (piece: string) => (text += piece) } as unknown as NodeJS.WriteStream
  using progress = new Progress(style, stream, () => now)
  for (const [ms, update] of updates) {
    now = ms
    progress.update(update)
  }
  return text
}

const at = (item: string, doneBytes: number): ItemProgress => ({
  item,
  doneBytes,
  totalBytes: 10 * MIB,
  step: 'fetching',
})

test('lines add all items up, every three seconds', () => {
  const text = said('lines', [
    [0, at('a', MIB)],
    [2999, at('a', 2 * MIB)],
    [3000, at('b', 4 * MIB)],
    [5999, at('b', 5 * MIB)],
    [6000, at('b', 10 * MIB)],
  ])
  expect(text).toBe(
    '6.0 MiB of 20.0 MiB, 2.1 MB/s; b fetching\n12.0 MiB of 20.0 MiB, 2.1 MB/s; a fetching\n',
  )
})

test('JSON lines come ten times a second for each item, and once more at its end', () => {
  const text = said('json', [
    [0, at('a', 1)],
    [50, at('a', 2)],
    [60, at('b', 1)],
    [100, at('a', 3)],
    [110, at('a', 10 * MIB)],
  ])
  const lines = text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as ItemProgress)
  expect(lines.map(({ item, doneBytes }) => [item, doneBytes])).toEqual([
    ['a', 1],
    ['b', 1],
    ['a', 3],
    ['a', 10 * MIB],
  ])
})

test('on a terminal it draws a bar for each item, and gives the cursor back', async () => {
  const layerDigest = digestOf(Buffer.from('layer'))
  const drawn = Promise.withResolvers<void>()
  await using agent = await FakeAgent.start({
    async *Pull() {
      yield { layerDigest, presentBytes: MIB, totalBytes: 4 * MIB }
      await drawn.promise
      yield { layerDigest, presentBytes: 4 * MIB, totalBytes: 4 * MIB, done: true }
    },
  })
  const cid = 'bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi'
  // script(1) runs it on a terminal of its own.
  const command = `${IPDR} pull ${cid} --agent ${agent.socketPath}`
  const child = spawn('script', ['-qec', command, '/dev/null'], { stdio: ['pipe', 'pipe', 'pipe'] })
  child.stdout.on('data', (piece: string) => {
    if (piece.includes('25%')) drawn.resolve()
  })
  const { exitCode, stdout } = await ended(child)
  expect(exitCode).toBe(0)
  expect(stdout).toContain(`${layerDigest.slice(0, 19)}  [######..................]  25%`)
  expect(stdout).toContain('1.0 MiB of 4.0 MiB  fetching')
  expect(stdout.lastIndexOf('\u001b[?25h')).toBeGreaterThan(stdout.lastIndexOf('\u001b[?25l'))
  expect(stdout.trimEnd()).toMatch(/1 layer ready, .*\)$/)
})
