import { expect, test } from 'vitest'
import { RequestRate } from '../../../agent/deploy/request-rate.ts'

test('a host has twice its rate at once, then its rate, and others have theirs', () => {
  let nowMs = 0
  const rate = new RequestRate(10, () => nowMs)
  const taken = (host: string, times: number): number =>
    Array.from({ length: times }, () => rate.takes(host)).filter(Boolean).length
  expect(taken('a', 100)).toBe(20)
  expect(taken('b', 5)).toBe(5)
  nowMs += 500
  expect(taken('a', 100)).toBe(5)
  nowMs += 3_600_000
  expect(taken('a', 100)).toBe(20)
})

test('a million hosts take no more memory than ten thousand, and the busy one is not forgotten', () => {
  const rate = new RequestRate(1, () => 0)
  expect([rate.takes('busy'), rate.takes('busy'), rate.takes('busy')]).toEqual([true, true, false])
  const taken: boolean[] = []
  for (let host = 0; host < 50_000; host++) {
    rate.takes(String(host))
    if (host % 1_000 === 0) taken.push(rate.takes('busy'))
  }
  expect(taken).toHaveLength(50)
  expect(taken).not.toContain(true)
})
