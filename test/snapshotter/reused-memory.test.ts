import { expect, test, vi } from 'vitest'
import { ReusedMemory } from '../../snapshotter/reused-memory.ts'

const MIB = 1024 ** 2

/** The memory that was lent, seen from its first byte. */
function memoryOf(bytes: Uint8Array): ArrayBufferLike {
  return bytes.buffer
}

test('memory is as long as was asked for, and lent again to the next one of about that length', async () => {
  using buffers = new ReusedMemory()
  const first = await buffers.lend(300_000, async (into) => into)
  expect(first).toHaveLength(300_000)
  const second = await buffers.lend(320_000, async (into) => into)
  expect(second).toHaveLength(320_000)
  expect(memoryOf(second)).toBe(memoryOf(first))
  const other = await buffers.lend(330_000, async (into) => into)
  expect(memoryOf(other)).not.toBe(memoryOf(first))
})

test('nobody is lent what another still has, however that one ends', async () => {
  using buffers = new ReusedMemory()
  const work = Promise.withResolvers<never>()
  let held: Uint8Array | undefined
  const holding = buffers.lend(MIB, (into) => {
    held = into
    return work.promise
  })
  const meanwhile = await buffers.lend(MIB, async (into) => into)
  expect(memoryOf(meanwhile)).not.toBe(held && memoryOf(held))
  work.reject(new Error('it failed'))
  await expect(holding).rejects.toThrow('it failed')
  const after = await buffers.lend(MIB, async (into) => into)
  expect([held, meanwhile].map((bytes) => bytes?.buffer)).toContain(memoryOf(after))
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

test('no more than 16 MiB are kept, none of it for more than some seconds of rest, and nothing of units that nobody publishes', async () => {
  vi.useFakeTimers()
  try {
    using buffers = new ReusedMemory()
    const lent: Uint8Array[] = []
    const all = Promise.withResolvers<void>()
    const borrowers = Array.from({ length: 3 }, () =>
      buffers.lend(8 * MIB, async (into) => {
        lent.push(into)
        await all.promise
      }),
    )
    all.resolve()
    await Promise.all(borrowers)
    const known = new Set(lent.map(memoryOf))
    const isKept = async (bytes: number): Promise<boolean> =>
      buffers.lend(bytes, async (into) => known.has(memoryOf(into)))
    const again = await Promise.all([isKept(8 * MIB), isKept(8 * MIB), isKept(8 * MIB)])
    expect(again).toEqual([true, true, false])
    vi.advanceTimersByTime(5_000)
    expect(await isKept(8 * MIB)).toBe(false)
    const huge = await buffers.lend(64 * MIB, async (into) => into)
    const next = await buffers.lend(64 * MIB, async (into) => into)
    expect(memoryOf(next)).not.toBe(memoryOf(huge))
  } finally {
    vi.useRealTimers()
  }
})
