import { execFileSync } from 'node:child_process'
import { expect, test } from 'vitest'
import { wallClock } from '../../../snapshotter/snapshots/clock.ts'

/** The kernel's wall clock in nanoseconds, from a program that asks for it. */
function systemTime(): bigint {
  return BigInt(execFileSync('date', ['+%s%N'], { encoding: 'utf8' }).trim())
}

test('what is stamped between two readings of the system clock lies between them', () => {
  for (let round = 0; round < 20; round++) {
    const before = systemTime()
    const now = wallClock.now()
    expect(now).toBeGreaterThan(before)
    expect(now).toBeLessThan(systemTime())
  }
})

test('it agrees with Date, and has the nanoseconds that Date cuts off', () => {
  const astray: bigint[] = []
  const nanoseconds = new Set<bigint>()
  for (let round = 0; round < 20_000; round++) {
    const before = BigInt(Date.now()) * 1_000_000n
    const now = wallClock.now()
    const after = BigInt(Date.now() + 1) * 1_000_000n
    if (now < before || now > after) astray.push(now - before)
    nanoseconds.add(now % 1_000_000n)
  }
  expect(astray).toEqual([])
  expect(nanoseconds.size).toBeGreaterThan(1_000)
})
