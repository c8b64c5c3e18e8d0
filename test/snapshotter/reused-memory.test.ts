import { expect, test, vi } from 'vitest'
import { ReusedMemory } from '../../snapshotter/reused-memory.ts'

const MIB = 1024 ** 2

/** The memory that was lent, seen from its first byte. */
function memoryOf(bytes: Uint8Array): ArrayBufferLike {
  return bytes.buffer
}

test('memory is as long as was asked for, and lent again to the next one of about that length', () => {
  using memory = new ReusedMemory()
  const first = memory.take(300_000)
  expect(first).toHaveLength(300_000)
  memory.giveBack(first)
  const second = memory.take(320_000)
  expect(second).toHaveLength(320_000)
  expect(memoryOf(second)).toBe(memoryOf(first))
  memory.giveBack(second)
  expect(memoryOf(memory.take(330_000))).not.toBe(memoryOf(first))
})

test('nobody is lent what another still has', () => {
  using memory = new ReusedMemory()
  const held = memory.take(MIB)
  const meanwhile = memory.take(MIB)
  expect(memoryOf(meanwhile)).not.toBe(memoryOf(held))
  memory.giveBack(held)
  expect(memoryOf(memory.take(MIB))).toBe(memoryOf(held))
})

test('what was taken is lent again once any part of it was given back, to one only, and what came from elsewhere is not lent', () => {
  using memory = new ReusedMemory()
  const taken = memory.take(300_000)
  memory.giveBack(new Uint8Array(320 * 1024))
  expect(memoryOf(memory.take(300_000))).not.toBe(memoryOf(taken))
  memory.giveBack(taken.subarray(7, 9))
  memory.giveBack(taken)
  const next = memory.take(320_000)
  expect([next.length, memoryOf(next)]).toEqual([320_000, memoryOf(taken)])
  expect(memoryOf(memory.take(320_000))).not.toBe(memoryOf(taken))
})

test.each([
  [1, 64],
  [65_536, 64],
  [65_537, 80],
  [262_144, 256],
  [262_145, 320],
  [8 * MIB, 8 * 1024],
])('for %i bytes %i KiB are held: a quarter too much at most, above 64 KiB', (bytes, kib) => {
  using memory = new ReusedMemory()
  expect(memory.take(bytes).buffer.byteLength).toBe(kib * 1024)
})

test('no more than 16 MiB are kept, none of it for more than some seconds of rest, and nothing of units that nobody publishes', () => {
  vi.useFakeTimers()
  try {
    using memory = new ReusedMemory()
    const lent = [1, 2, 3].map(() => memory.take(8 * MIB))
    for (const array of lent) memory.giveBack(array)
    const known = new Set(lent.map(memoryOf))
    const again = [1, 2, 3].map(() => memory.take(8 * MIB))
    expect(again.map((array) => known.has(memoryOf(array)))).toEqual([true, true, false])
    for (const array of again) memory.giveBack(array)
    vi.advanceTimersByTime(5_000)
    const after = memory.take(8 * MIB)
    expect(again.map(memoryOf)).not.toContain(memoryOf(after))
    const huge = memory.take(64 * MIB)
    memory.giveBack(huge)
    expect(memoryOf(memory.take(64 * MIB))).not.toBe(memoryOf(huge))
  } finally {
    vi.useRealTimers()
  }
})
