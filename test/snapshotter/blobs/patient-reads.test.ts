import { mkdtemp, rm } from 'node:fs/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { BlobStore } from '../../../snapshotter/blobs/blob-store.ts'
import { DEFAULT_FETCH_LIMITS, FetchQueue } from '../../../snapshotter/blobs/fetch-queue.ts'
import type { Fetched } from '../../../snapshotter/blobs/lazy-layer.ts'
import type { Priority } from '../../../snapshotter/block-source.ts'
import { BlockError, RegistryError } from '../../../snapshotter/errors.ts'
import { failureOf } from '../../support/failure-of.ts'
import { listeningLog } from '../../support/fuse-mount.ts'
import { randomLayer } from './random-layer.ts'

const INODE = 100

/** A layer of one unit, whose source fails as often as it is told to; `queue` has one place for all fetches. */
async function failing(error: Error, times: number, deadlineMs = 10_000) {
  const root = await mkdtemp('/tmp/patient-reads-')
  onTestFinished(() => rm(root, { recursive: true, force: true }))
  const queue = new FetchQueue<Fetched>({
    ...DEFAULT_FETCH_LIMITS,
    total: 1,
    deadlineMs: { ...DEFAULT_FETCH_LIMITS.deadlineMs, foreground: deadlineMs },
  })
  const store = await BlobStore.open(
    { root, bytesMax: 2 ** 30 },
    { queue, log: listeningLog(), onWait: () => {}, onComplete: () => {} },
  )
  onTestFinished(() => store[Symbol.asyncDispose]())
  const layer = randomLayer(1, 1, 1_000)
  let asked = 0
  const source = {
    fetchUnit: async (unit: number, request: Parameters<typeof layer.source.fetchUnit>[1]) => {
      asked += 1
      if (asked <= times) throw error
      return layer.source.fetchUnit(unit, request)
    },
  }
  await store.add({ inode: INODE, name: 'layer', map: layer.map, source })
  const read = (priority: Priority, signal = new AbortController().signal): Promise<Buffer> =>
    store.read(INODE, { start: 0, end: layer.bytes.length }, { priority, signal })
  return { read, queue, store, layer, asked: () => asked }
}

const down = new RegistryError('UNAVAILABLE', 'the registry is down')
const refused = new RegistryError('PERMISSION_DENIED', 'renew them')

describe('a page fault', () => {
  test.each([
    ['is down', down],
    ['wants other credentials', refused],
  ])('waits for a registry that %s, and is served when that has passed', async (_, error) => {
    const { read, layer, asked } = await failing(error, 2)
    expect((await read('foreground')).equals(layer.bytes)).toBe(true)
    expect(asked()).toBe(3)
  })

  test('does not keep a place in the queue while it waits', async () => {
    const { read, queue, asked } = await failing(down, 1)
    const reading = read('foreground')
    await expect.poll(asked).toBe(1)
    const { signal } = new AbortController()
    const other = queue.run('another', 'foreground', async () => new Uint8Array([7]), signal)
    expect(await other).toEqual(new Uint8Array([7]))
    expect(asked()).toBe(1)
    await reading
  })

  test('fails with what the registry said once its deadline is near', async () => {
    const { read, asked } = await failing(refused, Number.POSITIVE_INFINITY, 600)
    expect(await failureOf(() => read('foreground'))).toMatchObject({ message: 'renew them' })
    expect(asked()).toBe(2)
  })

  test('ends when nobody waits for it any more', async () => {
    const { read, asked } = await failing(down, Number.POSITIVE_INFINITY)
    const stop = new AbortController()
    const reading = read('foreground', stop.signal)
    await expect.poll(asked).toBe(1)
    stop.abort()
    expect(await failureOf(() => reading)).toMatchObject({ code: 'CANCELLED' })
  })

  test.each([
    ['bytes that are wrong', new RegistryError('DATA_LOSS', 'x')],
    ['a blob that is not there', new RegistryError('NOT_FOUND', 'x')],
    ['blocks that peers do not have', new BlockError('UNAVAILABLE', 'x')],
  ])('does not wait for %s', async (_, error) => {
    const { read, asked } = await failing(error, 1)
    expect(await failureOf(() => read('foreground'))).toMatchObject({ message: 'x' })
    expect(asked()).toBe(1)
  })
})

test.each(['prefetch', 'background'] as const)('a %s does not wait', async (priority) => {
  const { read, asked } = await failing(down, 1)
  expect(await failureOf(() => read(priority))).toMatchObject({ message: 'the registry is down' })
  expect(asked()).toBe(1)
})
