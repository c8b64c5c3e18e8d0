import { execFileSync } from 'node:child_process'
import { expect, test, vi } from 'vitest'
import { WallClock } from '../../../snapshotter/snapshots/clock.ts'

/** The kernel's wall clock in nanoseconds, from a program that asks for it. */
function systemTime(): bigint {
  return BigInt(execFileSync('date', ['+%s%N'], { encoding: 'utf8' }).trim())
}

test('what is stamped between two readings of the system clock lies between them', () => {
  const clock = new WallClock()
  for (let round = 0; round < 20; round++) {
    const before = systemTime()
    const now = clock.now()
    expect(now).toBeGreaterThan(before)
    expect(now).toBeLessThan(systemTime())
  }
})

test('it never differs from Date by more than the nanoseconds that Date cuts off', () => {
  const clock = new WallClock()
  const astray: bigint[] = []
  for (let round = 0; round < 20_000; round++) {
    const before = BigInt(Date.now()) * 1_000_000n
    const now = clock.now()
    const after = BigInt(Date.now() + 1) * 1_000_000n
    // 5 µs: how well the two clocks are known to each other.
    if (now < before - 5_000n || now > after + 5_000n) astray.push(now - before)
  }
  expect(astray).toEqual([])
})

test('it follows when the clock is set', () => {
  const clock = new WallClock()
  const first = clock.now()
  const real = Date.now
  const spy = vi.spyOn(Date, 'now').mockImplementation(() => real() + 3_600_000)
  try {
    const hours = (clock.now() - first) / 3_600_000_000n
    expect(hours).toBe(1_000n)
  } finally {
    spy.mockRestore()
  }
})
