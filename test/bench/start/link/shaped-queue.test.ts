import { expect, test } from 'vitest'
import { seeded } from '../../../support/seeded.ts'
import { type QueueShape, ShapedQueue } from './shaped-queue.ts'

/** A megabyte a second, so that a byte is a microsecond. */
const SHAPE: QueueShape = { bitsPerSecond: 8e6, delayMs: 10 }

function arrivals(queue: ShapedQueue<number>): [packet: number, at: number][] {
  const seen: [number, number][] = []
  for (let at = queue.nextAt; at !== undefined; at = queue.nextAt) {
    // Never before its time.
    expect(queue.take(at - 0.001)).toBeUndefined()
    seen.push([queue.take(at) ?? -1, at])
  }
  return seen
}

test('a packet arrives when all its bits were sent and have travelled', () => {
  const queue = new ShapedQueue<number>(SHAPE)
  expect(queue.offer(1, 1000, 500)).toBe(true)
  expect(arrivals(queue)).toEqual([[1, 511]])
})

test('packets that come at once are sent one after the other, whoever sends them', () => {
  const queue = new ShapedQueue<number>(SHAPE)
  for (const packet of [1, 2, 3]) queue.offer(packet, 2000, 0)
  expect(arrivals(queue)).toEqual([
    [1, 12],
    [2, 14],
    [3, 16],
  ])
})

test('a link that was idle sends at once', () => {
  const queue = new ShapedQueue<number>(SHAPE)
  queue.offer(1, 1000, 0)
  queue.offer(2, 1000, 700)
  expect(arrivals(queue)).toEqual([
    [1, 11],
    [2, 711],
  ])
})

// Goal: a link never carries more than it can, and loses nothing that it took. Method: random packets at random times; a sum over
// any stretch of arrivals is compared with what the speed allows.
test('no stretch of time carries more than the speed allows, and all that was taken arrives in its order', () => {
  const [random, queue] = [seeded(11), new ShapedQueue<number>({ bitsPerSecond: 8e6, delayMs: 3 })]
  const sizes = new Map<number, number>()
  let now = 0
  for (let packet = 0; packet < 3000; packet++) {
    now += random(4)
    const bytes = 40 + random(3000)
    if (queue.offer(packet, bytes, now)) sizes.set(packet, bytes)
  }
  const seen = arrivals(queue)
  expect(seen.map(([packet]) => packet)).toEqual([...sizes.keys()])
  const [first = 0] = seen[0]?.slice(1) ?? []
  let bytes = 0
  for (const [packet, at] of seen.slice(1)) {
    bytes += sizes.get(packet) ?? 0
    expect(bytes).toBeLessThanOrEqual((at - first) * 1000 + 0.001)
  }
  expect(sizes.size).toBeLessThan(3000)
})

test('what would wait longer than a tenth of a second is dropped, and later packets are taken again', () => {
  const queue = new ShapedQueue<number>({ bitsPerSecond: 80e6, delayMs: 0 })
  const taken = Array.from({ length: 200 }, (_, packet) => queue.offer(packet, 10_000, 0))
  // 10 MB/s: 1 ms each; the one that finds exactly 100 ms before it is still taken.
  expect(taken.filter(Boolean)).toHaveLength(101)
  expect(queue.offer(1000, 10_000, 1.5)).toBe(true)
})

test('a slow link holds two of the largest packets all the same', () => {
  const queue = new ShapedQueue<number>({ bitsPerSecond: 1e6, delayMs: 0 })
  expect(queue.offer(1, 65_535, 0)).toBe(true)
  expect(queue.offer(2, 65_535, 0)).toBe(true)
})

test('a new shape lets go of what was under way, and holds for what comes', () => {
  const queue = new ShapedQueue<number>({ bitsPerSecond: 8000, delayMs: 1000 })
  queue.offer(1, 100, 0)
  queue.offer(2, 100, 0)
  queue.reshape(SHAPE)
  expect([queue.take(0), queue.take(0), queue.take(0)]).toEqual([1, 2, undefined])
  queue.offer(3, 1000, 5)
  expect(arrivals(queue)).toEqual([[3, 16]])
})
