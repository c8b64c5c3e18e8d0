import { expect, test } from 'vitest'
import { ProviderHealth } from '../../../agent/ipfs/block-provider.ts'

test('a provider that fails rests longer each time, up to a minute, and one success forgives it', () => {
  let now = 0
  const health = new ProviderHealth(() => now)
  for (const restMs of [500, 1_000, 2_000, 4_000]) {
    health.failed()
    now += restMs - 1
    expect(health.standing).toBe(1)
    now += 1
    expect(health.standing).toBe(0)
  }
  for (let failure = 0; failure < 40; failure++) {
    now += 60_000
    health.failed()
  }
  now += 59_999
  expect(health.standing).toBe(1)
  health.succeeded(10)
  expect(health.standing).toBe(0)
  health.failed()
  now += 500
  expect(health.standing).toBe(0)
})

test('of many blocks that fail together, each does not make it rest longer', () => {
  let now = 0
  const health = new ProviderHealth(() => now)
  for (let block = 0; block < 8; block++) health.failed()
  now = 500
  expect(health.standing).toBe(0)
  for (let block = 0; block < 8; block++) health.failed()
  now = 1_499
  expect(health.standing).toBe(1)
  now = 1_500
  expect(health.standing).toBe(0)
})

test('a provider that says when to come back is believed, up to a minute', () => {
  let now = 0
  const health = new ProviderHealth(() => now)
  health.failed(30_000)
  now = 29_999
  expect(health.standing).toBe(1)
  health.failed(86_400_000)
  now += 60_000
  expect(health.standing).toBe(0)
})

test('a provider that sent wrong bytes comes last for ten minutes, whatever it sends after', () => {
  let now = 0
  const health = new ProviderHealth(() => now)
  health.sentWrongBytes()
  health.succeeded(1)
  now = 599_999
  expect(health.standing).toBe(2)
  now = 600_000
  expect(health.standing).toBe(0)
})

test('latency is an average that moves with the newest answers', () => {
  const health = new ProviderHealth()
  expect(health.latencyMs).toBeUndefined()
  health.succeeded(100)
  health.succeeded(200)
  expect(health.latencyMs).toBe(120)
})
