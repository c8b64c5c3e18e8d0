import { expect, test } from 'vitest'
import { priorityHeader, priorityOfHeader } from '../../../agent/ipfs/http-priority.ts'

test('a priority goes through its header, as an urgency of RFC 9218', () => {
  for (const priority of ['foreground', 'prefetch', 'background'] as const) {
    const { priority: header } = priorityHeader(priority)
    expect(header).toMatch(/^u=[0-7]$/)
    expect(priorityOfHeader(header)).toBe(priority)
  }
})

test.each([
  [undefined, 'background'],
  ['', 'background'],
  ['u=9', 'background'],
  ['u=10', 'background'],
  ['i, u=0', 'foreground'],
  ['u=3, i', 'prefetch'],
  [`${'i,'.repeat(10_000)}u=0`, 'background'],
])('%s is %s', (header, priority) => {
  expect(priorityOfHeader(header)).toBe(priority)
})
