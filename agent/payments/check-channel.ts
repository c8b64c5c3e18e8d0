import type { ChannelState } from './payment-channels.ts'

/** What an operator asks of a channel before a pod is made or changed. */
export type ChannelTerms = {
  /** For how long the channel must be able to pay, in seconds. */
  readonly fundedSecondsMin: bigint
  /** How long its publisher must have to wait for his money, in seconds: the time in which the operator can settle. */
  readonly unlockSecondsMin: bigint
}

/** What a pod costs: base units of the channel's token per 10^9 seconds; 0: nothing. */
export type ChannelNeeds = { readonly perGigasecond: bigint }

export type ChannelVerdict =
  /** `fundedSeconds`: how long what is left lasts, whole seconds, which may exceed 64 bits; undefined where the pod costs nothing. */
  | { readonly ok: true; readonly fundedSeconds: bigint | undefined }
  | { readonly ok: false; readonly reason: ChannelFault; readonly message: string }

export type ChannelFault = 'missing' | 'unlocking' | 'lock too short' | 'underfunded'

const GIGASECOND = 1_000_000_000n

/** Whether a channel is good for making or changing a pod. `state` is undefined if there is no channel. */
export function checkChannel(
  state: ChannelState | undefined,
  { fundedSecondsMin, unlockSecondsMin }: ChannelTerms,
  { perGigasecond }: ChannelNeeds,
): ChannelVerdict {
  // At least 1, for free pods too: a channel is also what shows that its publisher means it.
  const needed = atLeast(1n, divideUp(fundedSecondsMin * perGigasecond, GIGASECOND))
  if (state === undefined) {
    return fault(
      'missing',
      `there is no payment channel for this pod: create one with at least ${units(needed)} that locks for at least ${unlockSecondsMin} s`,
    )
  }
  // Not only while time runs: a contract in use keeps the old time when an emptied channel is created again, and from then on lets
  // its publisher take everything at once.
  if (state.unlockedAt !== 0n) {
    return fault(
      'unlocking',
      `the channel is unlocking, its publisher can empty it from ${state.unlockedAt} (seconds since 1970) on: deposit into it, which locks it again`,
    )
  }
  if (state.unlockSeconds < unlockSecondsMin) {
    return fault(
      'lock too short',
      `the channel locks for ${state.unlockSeconds} s, this operator asks for ${unlockSecondsMin}: close it and create one with a longer unlock time`,
    )
  }
  const left = state.deposit - state.redeemed
  if (left < needed) {
    const purpose =
      perGigasecond === 0n
        ? 'and must not be empty'
        : `${fundedSecondsMin} s of this pod need ${needed}`
    return fault(
      'underfunded',
      `the channel has ${units(left)} left, ${purpose}: deposit at least ${needed - left} more`,
    )
  }
  return {
    ok: true,
    fundedSeconds: perGigasecond === 0n ? undefined : (left * GIGASECOND) / perGigasecond,
  }
}

function fault(reason: ChannelFault, message: string): ChannelVerdict {
  return { ok: false, reason, message }
}

function units(amount: bigint): string {
  return `${amount} base unit${amount === 1n ? '' : 's'}`
}

function divideUp(amount: bigint, by: bigint): bigint {
  return (amount + by - 1n) / by
}

function atLeast(least: bigint, amount: bigint): bigint {
  return amount < least ? least : amount
}
