import { join } from 'node:path'
import { expect, test } from 'vitest'
import { UsedCalls } from '../../../agent/deploy/used-calls.ts'
import { Scratch } from '../../support/scratch.ts'

const NOW = 1_800_000_000
const idOf = (n: number): Uint8Array => Uint8Array.of(n, n, n)
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

test('a call is carried out once', () => {
  using used = UsedCalls.open(':memory:')
  used.use({ id: idOf(1), pod: 'a', expiresAt: NOW + 60 }, NOW)
  used.use({ id: idOf(2), pod: 'a', expiresAt: NOW + 60 }, NOW)
  expect(() => used.use({ id: idOf(1), pod: 'a', expiresAt: NOW + 60 }, NOW)).toThrow(
    expect.objectContaining({ code: 'UNAUTHENTICATED' }),
  )
})

test('one that may be asked for again is, for the same request, until something else changes the pod', () => {
  using used = UsedCalls.open(':memory:')
  const first = { id: idOf(1), pod: 'a', expiresAt: NOW + 60, request: bytes('one') }
  used.use(first, NOW)
  used.use(first, NOW)
  expect(() => used.use({ ...first, request: bytes('two') }, NOW)).toThrow('signature')
  used.use({ ...first, id: idOf(3), pod: 'b' }, NOW)
  used.use(first, NOW)
  used.use({ ...first, id: idOf(2) }, NOW)
  expect(() => used.use(first, NOW)).toThrow('signature')
})

test('a restart forgets nothing', async () => {
  await using scratch = Scratch.open('used-calls')
  const path = join(scratch.dir, 'deploy', 'used.db')
  const call = { id: idOf(1), pod: 'a', expiresAt: NOW + 60 }
  {
    using used = UsedCalls.open(path)
    used.use(call, NOW)
  }
  using used = UsedCalls.open(path)
  expect(() => used.use(call, NOW)).toThrow('signature')
})
