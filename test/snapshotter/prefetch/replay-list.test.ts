import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { BlobStore } from '../../../snapshotter/blobs/blob-store.ts'
import { DEFAULT_FETCH_LIMITS, FetchQueue } from '../../../snapshotter/blobs/fetch-queue.ts'
import type { Fetched, LazyLayer } from '../../../snapshotter/blobs/lazy-layer.ts'
import type { BlockRequest } from '../../../snapshotter/block-source.ts'
import { PrefetchedUnits } from '../../../snapshotter/prefetch/prefetched-units.ts'
import { replayRanges } from '../../../snapshotter/prefetch/replay-list.ts'
import { TarLayerMap } from '../../../snapshotter/toc/tar-layer-map.ts'
import { listeningLog } from '../../support/fuse-mount.ts'

const UNIT = 4096
const UNITS = 100
const NO_LIMIT = Number.POSITIVE_INFINITY
const { signal } = new AbortController()

type Asked = BlockRequest & { readonly unit: number; answer(error?: Error): void }

/** A layer of 100 units of 4 KiB, and what is asked of its source; each is answered when the test says so. */
async function heldLayer() {
  const root = await mkdtemp('/tmp/replay-test-')
  onTestFinished(() => rm(root, { recursive: true, force: true }))
  const asked: Asked[] = []
  const queue = new FetchQueue<Fetched>({ ...DEFAULT_FETCH_LIMITS, total: 16, prefetch: 12 })
  const store = await BlobStore.open(
    { root: join(root, 'layers'), bytesMax: 2 ** 30 },
    { queue, log: listeningLog() },
  )
  onTestFinished(() => store[Symbol.asyncDispose]())
  const starts = Float64Array.from({ length: UNITS + 1 }, (_, unit) => unit * UNIT)
  const layer = await store.add({
    inode: 1001,
    name: 'layer',
    map: new TarLayerMap(starts.subarray(1)),
    source: {
      fetchUnit(unit, request) {
        const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>()
        const answer = (error?: Error): void =>
          error === undefined ? resolve(new Uint8Array(UNIT).fill(unit)) : reject(error)
        request.signal.addEventListener('abort', () => reject(new Error('left')), { once: true })
        asked.push({ ...request, unit, answer })
        return promise
      },
    },
  })
  return { layer, asked, queue }
}

const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0))
const units = (...numbers: number[]) =>
  numbers.map((unit) => ({ layer: 0, start: unit * UNIT, end: unit * UNIT + 1 }))

function replay(
  layer: LazyLayer,
  ranges: Parameters<typeof replayRanges>[0],
  options: Partial<Parameters<typeof replayRanges>[1]> = {},
): ReturnType<typeof replayRanges> {
  const layers = new Map([[0, layer]])
  const budget = { bytesLeft: NO_LIMIT }
  return replayRanges(ranges, { layers, budget, signal, onUnit: () => {}, ...options })
}

/** Answers whatever is asked until the work is done. */
async function answering<T>(asked: Asked[], work: Promise<T>, error?: Error): Promise<T> {
  const state = { isDone: false }
  void work.finally(() => (state.isDone = true))
  while (!state.isDone) {
    for (const each of asked) each.answer(error)
    await settled()
  }
  return work
}

test('units come in the order of the list, each once, and those that are here are not asked for', async () => {
  const { layer, asked } = await heldLayer()
  await answering(asked, layer.fill(7, { priority: 'foreground', signal }))
  const ranges = [
    ...units(50, 3, 50, 7),
    { layer: 0, start: 10 * UNIT - 1, end: 11 * UNIT },
    ...units(3),
  ]
  const done = await answering(asked, replay(layer, ranges))
  expect(asked.map(({ unit }) => unit)).toEqual([7, 50, 3, 9, 10])
  expect(done).toMatchObject({ units: 4, bytes: 4 * UNIT, failed: 0 })
})

test('a page fault goes before the units of a list that wait, and has places of its own', async () => {
  const { layer, asked, queue } = await heldLayer()
  const replays = [0, 40].map((first) =>
    replay(layer, units(...Array.from({ length: 30 }, (_, index) => first + index))),
  )
  await settled()
  expect(asked).toHaveLength(12)
  expect(queue.depth).toMatchObject({ prefetch: 12, foreground: 0 })
  const fault = layer.read(
    { start: 99 * UNIT, end: 100 * UNIT },
    { priority: 'foreground', signal },
  )
  await settled()
  expect(asked.at(-1)).toMatchObject({ unit: 99, priority: 'foreground' })
  await answering(asked, Promise.all([fault, ...replays]))
})

test('a page fault on a unit that is being prefetched waits for that fetch, and makes it urgent', async () => {
  const { layer, asked } = await heldLayer()
  const replaying = replay(layer, units(5))
  await settled()
  const [fetch] = asked
  expect(fetch).toMatchObject({ unit: 5, priority: 'prefetch' })
  expect(fetch?.escalated?.aborted).toBe(false)
  const fault = layer.read(
    { start: 5 * UNIT, end: 5 * UNIT + 1 },
    { priority: 'foreground', signal },
  )
  await settled()
  expect(fetch?.escalated?.aborted).toBe(true)
  fetch?.answer()
  expect([...(await fault)]).toEqual([5])
  await replaying
  expect(asked).toHaveLength(1)
})

test('at most so many bytes are fetched', async () => {
  const { layer, asked } = await heldLayer()
  const all = units(...Array.from({ length: UNITS }, (_, unit) => unit))
  const budget = { bytesLeft: 20 * UNIT }
  const done = await answering(asked, replay(layer, all, { budget }))
  expect(done).toMatchObject({ units: 20, bytes: 20 * UNIT })
  // Another that shares it comes too late.
  expect(await answering(asked, replay(layer, all, { budget }))).toMatchObject({ units: 0 })
})

test('a unit that cannot be had is passed over, and where nothing can be had it ends', async () => {
  const { layer, asked } = await heldLayer()
  const one = replay(layer, units(1, 2, 3))
  await settled()
  asked[1]?.answer(new Error('nobody has it'))
  await settled()
  expect(await answering(asked, one)).toMatchObject({
    units: 2,
    failed: 1,
    reason: { message: 'nobody has it' },
  })
  const all = units(...Array.from({ length: UNITS }, (_, unit) => unit))
  const done = await answering(asked, replay(layer, all), new Error('no peer'))
  expect(done.units).toBe(0)
  expect(done.failed).toBeLessThan(UNITS / 2)
})

test('it stops at once when it is told to', async () => {
  const { layer, asked } = await heldLayer()
  const stop = new AbortController()
  const all = units(...Array.from({ length: UNITS }, (_, unit) => unit))
  const replaying = replay(layer, all, { signal: stop.signal })
  await settled()
  stop.abort()
  expect(await replaying).toMatchObject({ units: 0, failed: 0 })
  expect(asked.every(({ signal }) => signal.aborted)).toBe(true)
})

test('ranges of no layer, or outside of theirs, are passed over', async () => {
  const { layer, asked } = await heldLayer()
  const outside = [
    { layer: 1, start: 0, end: 1 },
    { layer: 0, start: UNITS * UNIT, end: UNITS * UNIT + 1 },
    { layer: 0, start: 0, end: UNITS * UNIT + 1 },
  ]
  expect(await replay(layer, outside)).toMatchObject({ units: 0, failed: 0 })
  expect(asked).toEqual([])
})

test('of what was prefetched, it is known how much was read since', async () => {
  const { layer, asked } = await heldLayer()
  const counted = new PrefetchedUnits()
  const onUnit = (of: LazyLayer, unit: number): void => counted.add(of, unit)
  const replaying = replay(layer, units(1, 2, 3), { onUnit })
  await settled()
  const joined = layer.read({ start: 2 * UNIT, end: 3 * UNIT }, { priority: 'foreground', signal })
  await answering(asked, Promise.all([replaying, joined]))
  expect(counted.counters()).toEqual({ fetchedBytes: 3 * UNIT, usedBytes: UNIT })
  await layer.read({ start: UNIT, end: UNIT + 1 }, { priority: 'foreground', signal })
  expect(counted.counters()).toEqual({ fetchedBytes: 3 * UNIT, usedBytes: 2 * UNIT })
})
