import { expect, test } from 'vitest'
import { type PricedResources, type PriceTable, priceOf } from '../../../agent/payments/prices.ts'
import { failureOf } from '../../support/failure-of.ts'
import { seeded } from '../../support/seeded.ts'

const GPU = 'nvidia.com/gpu'

const tableOf = (prices: Record<string, bigint>): PriceTable => ({
  contract: `0x${'c0'.repeat(20)}`,
  token: `0x${'70'.repeat(20)}`,
  perGigasecond: new Map(Object.entries(prices)),
})

const NOTHING: PricedResources = {
  cpuMillis: 0n,
  memoryBytes: 0n,
  storageBytes: 0n,
  devices: new Map(),
}

test('a pod costs what its cores, bytes and devices cost together', () => {
  const table = tableOf({ cpu: 5_000n, memory: 3n, storage: 2n, [GPU]: 700n })
  expect(priceOf({ ...NOTHING, cpuMillis: 2_500n }, table)).toBe(12_500n)
  expect(priceOf({ ...NOTHING, memoryBytes: 10n }, table)).toBe(30n)
  expect(priceOf({ ...NOTHING, storageBytes: 10n }, table)).toBe(20n)
  expect(priceOf({ ...NOTHING, devices: new Map([[GPU, 2n]]) }, table)).toBe(1_400n)
  const pod = { cpuMillis: 2_500n, memoryBytes: 10n, storageBytes: 10n }
  expect(priceOf({ ...pod, devices: new Map([[GPU, 2n]]) }, table)).toBe(13_950n)
})

test('a thousandth of a core costs a thousandth of its price, rounded up', () => {
  const table = tableOf({ cpu: 7n })
  const price = (cpuMillis: bigint): bigint => priceOf({ ...NOTHING, cpuMillis }, table)
  expect([0n, 1n, 142n, 143n, 999n, 1_000n, 1_001n].map(price)).toEqual([
    0n,
    1n,
    1n,
    2n,
    7n,
    7n,
    8n,
  ])
})

// Method: rationals of a thousandth, kept whole, beside the sum; the price may not be lower than them, nor a unit higher.
test('rounding never costs a unit or more, and never the operator anything, however large the numbers', () => {
  const random = seeded(11)
  const large = (): bigint => BigInt(random(2 ** 31)) ** BigInt(random(4))
  for (let pod = 0; pod < 500; pod++) {
    const [cpu, memory, storage, gpu] = [large(), large(), large(), large()]
    const resources = { cpuMillis: large(), memoryBytes: large(), storageBytes: large() }
    const count = BigInt(random(9))
    const thousandths =
      resources.cpuMillis * cpu +
      1_000n * (resources.memoryBytes * memory + resources.storageBytes * storage + count * gpu)
    const price = priceOf(
      { ...resources, devices: new Map([[GPU, count]]) },
      tableOf({ cpu, memory, storage, [GPU]: gpu }),
    )
    const excess = price * 1_000n - thousandths
    expect(excess >= 0n && excess < 1_000n, `pod ${pod}: ${excess}`).toBe(true)
  }
})

test('cores, memory and storage that have no price are free', () => {
  const pod = { ...NOTHING, cpuMillis: 4_000n, memoryBytes: 2n ** 34n, storageBytes: 2n ** 40n }
  expect(priceOf(pod, tableOf({}))).toBe(0n)
  expect(priceOf(pod, tableOf({ cpu: 1n }))).toBe(4n)
})

test('a device that has no price is refused by name, unless none of it is asked for', async () => {
  const table = tableOf({ cpu: 1n, [GPU]: 1n })
  const devices = new Map([['amd.com/gpu', 1n]])
  const failure = await failureOf(() => priceOf({ ...NOTHING, devices }, table))
  expect(failure).toEqual({
    name: 'ChannelError',
    code: 'INVALID_ARGUMENT',
    message:
      'this operator has no price for amd.com/gpu: leave it out, or find an operator that offers it',
  })
  expect(priceOf({ ...NOTHING, devices: new Map([['amd.com/gpu', 0n]]) }, table)).toBe(0n)
})

test('a device that is given away for nothing has the price 0', () => {
  const devices = new Map([[GPU, 3n]])
  expect(priceOf({ ...NOTHING, devices }, tableOf({ [GPU]: 0n }))).toBe(0n)
})
