import type { Worker } from 'node:worker_threads'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { TableThread } from '../../../snapshotter/layers/table-thread.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'

const started: Worker[] = []
const note = (worker: Worker): number => started.push(worker)
beforeEach(() => {
  started.length = 0
  process.on('worker', note)
})
afterEach(() => void process.off('worker', note))

const layer = {
  blobDigest: digestOf(Buffer.from('blob')),
  blobSize: 4,
  diffId: digestOf(Buffer.from('tar')),
}
const damaged = { kind: 'sideIndex', tag: 'layer', stored: Buffer.from('none'), layer } as const

test('a thread that was started for what is coming does it, and is the only one', async () => {
  await using tables = new TableThread()
  tables.warm()
  await vi.waitFor(() => expect(started).toHaveLength(1))
  tables.warm()
  expect((await failureOf(() => tables.index(damaged))).code).toBe('DATA_LOSS')
  expect(started).toHaveLength(1)
})

test('a thread that waits for work in vain for two seconds ends, and the next work has another', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
  try {
    await using tables = new TableThread()
    tables.warm()
    vi.advanceTimersByTime(1_000)
    tables.warm()
    vi.advanceTimersByTime(1_500)
    expect((await failureOf(() => tables.index(damaged))).code).toBe('DATA_LOSS')
    expect(started).toHaveLength(1)
    vi.advanceTimersByTime(2_000)
    tables.warm()
    vi.advanceTimersByTime(2_000)
    expect((await failureOf(() => tables.index(damaged))).code).toBe('DATA_LOSS')
    expect(started).toHaveLength(3)
  } finally {
    vi.useRealTimers()
  }
})
