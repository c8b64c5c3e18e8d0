import { expect, test } from 'vitest'
import { inTurn, median, medians, quantile, slopeOf } from './rounds.ts'

test('arms are measured in turn, in the other order every second round', async () => {
  const seen: string[] = []
  await inTurn(3, ['a', 'b', 'c'], async (arm, round) => void seen.push(`${arm}${round}`))
  expect(seen.join(' ')).toBe('a0 b0 c0 c1 b1 a1 a2 b2 c2')
})

test('of each arm the median is kept', async () => {
  const [slow, quick] = [
    [9, 7, 8],
    [1, 3, 2],
  ]
  const arms = { slow: async () => slow.shift() ?? 0, quick: async () => quick.shift() ?? 0 }
  expect(await medians(3, arms)).toEqual({ slow: 8, quick: 2 })
})

test('a median is the middle one, or between the two in the middle, and of none there is none', () => {
  expect([median([5]), median([9, 1, 4]), median([4, 1, 2, 9])]).toEqual([5, 4, 3])
  expect(() => median([])).toThrow(RangeError)
})

test('a quantile is the smallest number that so many are not above', () => {
  const hundred = Array.from({ length: 100 }, (_, index) => 100 - index)
  expect([quantile(hundred, 0.5), quantile(hundred, 0.99), quantile(hundred, 1)]).toEqual([
    50, 99, 100,
  ])
  expect(() => quantile([], 0.5)).toThrow(RangeError)
})

test('a slope is that of the line with the least squares, and points above each other have none', () => {
  expect(
    slopeOf([
      [0, 1],
      [1, 3],
      [2, 5],
    ]),
  ).toBe(2)
  expect(
    slopeOf([
      [0, 0],
      [1, 1],
      [2, 0],
    ]),
  ).toBe(0)
  expect(() => slopeOf([[1, 2]])).toThrow(RangeError)
})
