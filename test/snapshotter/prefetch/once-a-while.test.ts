import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { OnceAWhile } from '../../../snapshotter/prefetch/once-a-while.ts'

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance'] })
})

afterEach(() => {
  vi.useRealTimers()
})

test('what was begun is begun again only after the while', () => {
  const done = new OnceAWhile(1000, 2)
  expect(done.begin('a')).toBe(true)
  vi.advanceTimersByTime(999)
  expect(done.begin('a')).toBe(false)
  expect(done.begin('b')).toBe(true)
  vi.advanceTimersByTime(1)
  expect(done.begin('a')).toBe(true)
})

test('what was noted counts as begun', () => {
  const done = new OnceAWhile(1000, 2)
  done.note('a')
  vi.advanceTimersByTime(600)
  done.note('a')
  vi.advanceTimersByTime(600)
  expect(done.begin('a')).toBe(false)
})

test('of more names than it remembers, the one that was not done for longest is forgotten', () => {
  const done = new OnceAWhile(1000, 2)
  for (const name of ['a', 'b', 'a', 'c']) done.note(name)
  expect(done.begin('a')).toBe(false)
  expect(done.begin('b')).toBe(true)
})
