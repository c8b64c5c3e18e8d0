import { expect, test } from 'vitest'
import { checkChannel } from '../../../agent/payments/check-channel.ts'
import type { ChannelState } from '../../../agent/payments/payment-channels.ts'
import { seeded } from '../../support/seeded.ts'

const TERMS = { fundedSecondsMin: 600n, unlockSecondsMin: 300n }
/** Two base units a second, so that 600 s cost 1200. */
const NEEDS = { perGigasecond: 2_000_000_000n }
const FREE = { perGigasecond: 0n }
const GOOD: ChannelState = { deposit: 2_000n, redeemed: 500n, unlockSeconds: 300n, unlockedAt: 0n }

test('a locked channel with enough left is good, and it is told how long it lasts', () => {
  expect(checkChannel(GOOD, TERMS, NEEDS)).toEqual({ ok: true, fundedSeconds: 750n })
})

test('without a channel it is told what to create', () => {
  expect(checkChannel(undefined, TERMS, NEEDS)).toEqual({
    ok: false,
    reason: 'missing',
    message:
      'there is no payment channel for this pod: create one with at least 1200 base units that locks for at least 300 s',
  })
})

test('what counts is what the operator has not taken yet', () => {
  expect(checkChannel({ ...GOOD, redeemed: 800n }, TERMS, NEEDS)).toMatchObject({ ok: true })
  expect(checkChannel({ ...GOOD, redeemed: 801n }, TERMS, NEEDS)).toEqual({
    ok: false,
    reason: 'underfunded',
    message:
      'the channel has 1199 base units left, 600 s of this pod need 1200: deposit at least 1 more',
  })
})

test('a price far below one unit a second still counts', () => {
  const cheap = { perGigasecond: 1_666_667n } // 600 s cost 1.0000002 units.
  const left = (deposit: bigint) => ({ ...GOOD, deposit, redeemed: 0n })
  expect(checkChannel(left(1n), TERMS, cheap)).toMatchObject({ reason: 'underfunded' })
  expect(checkChannel(left(2n), TERMS, cheap)).toEqual({ ok: true, fundedSeconds: 1_199n })
})

test('a pod that costs nothing needs a channel with one unit in it, which lasts for ever', () => {
  expect(checkChannel(undefined, TERMS, FREE)).toMatchObject({ reason: 'missing' })
  expect(checkChannel({ ...GOOD, redeemed: 2_000n }, TERMS, FREE)).toEqual({
    ok: false,
    reason: 'underfunded',
    message: 'the channel has 0 base units left, and must not be empty: deposit at least 1 more',
  })
  expect(checkChannel({ ...GOOD, redeemed: 1_999n }, TERMS, FREE)).toEqual({
    ok: true,
    fundedSeconds: undefined,
  })
})

test('an operator who asks for no time in advance still asks for one unit', () => {
  const terms = { ...TERMS, fundedSecondsMin: 0n }
  expect(checkChannel({ ...GOOD, redeemed: 2_000n }, terms, NEEDS)).toMatchObject({
    reason: 'underfunded',
  })
  expect(checkChannel({ ...GOOD, redeemed: 1_999n }, terms, NEEDS)).toEqual({
    ok: true,
    fundedSeconds: 0n,
  })
})

test('a channel that is unlocking is refused however full it is, and whether the time is over or not', () => {
  for (const unlockedAt of [1n, 1_700_000_000n, 2n ** 256n - 1n]) {
    expect(checkChannel({ ...GOOD, deposit: 2n ** 255n, unlockedAt }, TERMS, NEEDS)).toEqual({
      ok: false,
      reason: 'unlocking',
      message: `the channel is unlocking, its publisher can empty it from ${unlockedAt} (seconds since 1970) on: deposit into it, which locks it again`,
    })
  }
})

test('a channel that locks for less than the operator needs to settle is refused', () => {
  expect(checkChannel({ ...GOOD, unlockSeconds: 60n }, TERMS, NEEDS)).toEqual({
    ok: false,
    reason: 'lock too short',
    message:
      'the channel locks for 60 s, this operator asks for 300: close it and create one with a longer unlock time',
  })
  expect(checkChannel({ ...GOOD, unlockSeconds: 299n }, TERMS, FREE)).toMatchObject({ ok: false })
  expect(checkChannel({ ...GOOD, unlockSeconds: 301n }, TERMS, FREE)).toMatchObject({ ok: true })
})

// Method: whoever is told how long it lasts must find, by multiplication alone, that what is left pays that long and not a second longer.
test('what is said to last so long does, to the second, and what is refused for its funds would not have', () => {
  const random = seeded(5)
  const large = (): bigint => BigInt(random(2 ** 31)) ** BigInt(random(4))
  const seen = { ok: 0, underfunded: 0 }
  for (let channel = 0; channel < 1_000; channel++) {
    const [redeemed, left, perGigasecond] = [large(), large(), 1n + large()]
    const state = { ...GOOD, deposit: redeemed + left, redeemed }
    const fundedSecondsMin = BigInt(random(100_000))
    const verdict = checkChannel(state, { ...TERMS, fundedSecondsMin }, { perGigasecond })
    const paysFor = (seconds: bigint): boolean => seconds * perGigasecond <= left * 10n ** 9n
    const isGood = left > 0n && paysFor(fundedSecondsMin)
    expect(verdict.ok, `channel ${channel}`).toBe(isGood)
    seen[verdict.ok ? 'ok' : 'underfunded']++
    if (!verdict.ok) continue
    const { fundedSeconds = -1n } = verdict
    expect(paysFor(fundedSeconds) && !paysFor(fundedSeconds + 1n), `channel ${channel}`).toBe(true)
  }
  expect(Math.min(seen.ok, seen.underfunded)).toBeGreaterThan(100)
})
