import { expect, onTestFinished, test } from 'vitest'
import type { TracedRead } from '../../../snapshotter/fuse/read-trace.ts'
import {
  LEARNED_BYTES_MAX,
  REST_MS,
  type Recording,
  StartRecorder,
  UNUSED_MS,
  WINDOW_MS,
} from '../../../snapshotter/prefetch/start-recorder.ts'

/** A recorder on reads that the test makes up, at times that it sets. */
function madeUp() {
  const state = { now: 1_000, waiting: 0, isTracing: false, reads: [] as TracedRead[] }
  const recorder = new StartRecorder({
    trace: {
      start: () => void (state.isTracing = true),
      stop: () => void (state.isTracing = false),
      drain: () => state.reads.splice(0),
    },
    layerOf: (inode) => inode - 1000,
    waiting: () => state.waiting,
    now: () => state.now,
  })
  onTestFinished(() => recorder[Symbol.dispose]())
  const read = (layer: number, offset: number, length = 512): void => {
    if (state.isTracing) state.reads.push({ inode: layer + 1000, offset, length })
  }
  const pass = (ms: number): void => {
    state.now += ms
    recorder.tick()
  }
  const record = (isBounded: boolean, ...layers: number[]): Recording =>
    recorder.record({ layers: new Set(layers), isBounded, bytesMax: LEARNED_BYTES_MAX })
  return { state, recorder, read, pass, record }
}

async function hasEnded({ ended }: Recording): Promise<boolean> {
  const later = new Promise<boolean>((resolve) => setImmediate(() => resolve(false)))
  return Promise.race([ended.then(() => true), later])
}

test('threads are asked to note reads only while something is recorded', () => {
  const { state, record } = madeUp()
  expect(state.isTracing).toBe(false)
  const [one, other] = [record(false, 1), record(false, 2)]
  expect(state.isTracing).toBe(true)
  one.end()
  expect(state.isTracing).toBe(true)
  other.end()
  expect(state.isTracing).toBe(false)
})

test('each recording gets the reads of its own layers, in their order', () => {
  const { read, pass, record } = madeUp()
  const [one, both] = [record(false, 1), record(false, 1, 2)]
  read(2, 0)
  read(1, 4096)
  read(3, 0)
  read(1, 0)
  read(1, 4096)
  pass(100)
  expect(one.uses.ranges.map(({ start }) => start)).toEqual([4096, 0])
  expect(both.uses.ranges.map(({ layer, start }) => [layer, start])).toEqual([
    [2, 0],
    [1, 4096],
    [1, 0],
  ])
})

test('a start is over when nothing new was read for a while, and no read waits', async () => {
  const { state, read, pass, record } = madeUp()
  const start = record(true, 1)
  pass(REST_MS * 2)
  expect(await hasEnded(start), 'it has not begun').toBe(false)
  read(1, 0)
  pass(100)
  state.waiting = 1
  pass(REST_MS * 2)
  expect(await hasEnded(start), 'a read waits').toBe(false)
  state.waiting = 0
  read(1, 0)
  pass(100)
  expect(await hasEnded(start), 'what was read again is not new').toBe(true)
})

test('a start is over after its window, however much is read, and when nothing ever is', async () => {
  const { read, pass, record } = madeUp()
  const busy = record(true, 1)
  for (let ms = 0; ms <= WINDOW_MS + 1_000; ms += 1_000) {
    read(1, ms * 512)
    pass(1_000)
  }
  expect(await hasEnded(busy)).toBe(true)
  const unused = record(true, 1)
  pass(UNUSED_MS + 1)
  expect(await hasEnded(unused)).toBe(true)
})

test('a start that reads more than is worth a list is over there', async () => {
  const { read, pass, record } = madeUp()
  const start = record(true, 1)
  read(1, 0, LEARNED_BYTES_MAX * 2)
  pass(100)
  expect(await hasEnded(start)).toBe(true)
  expect(start.uses.bytes).toBe(LEARNED_BYTES_MAX)
})

test('a recording without bounds goes on until it is ended', async () => {
  const { read, pass, record } = madeUp()
  const start = record(false, 1)
  read(1, 0)
  pass(WINDOW_MS * 10)
  expect(await hasEnded(start)).toBe(false)
  read(1, 512)
  start.end()
  expect(await hasEnded(start)).toBe(true)
  expect(start.uses.bytes, 'with what was read until then').toBe(1024)
})
