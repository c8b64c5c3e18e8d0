import type { CID } from 'multiformats/cid'
import { BlockError } from '../../snapshotter/errors.ts'

/** Largest block taken from anybody, in bytes: 2 MiB, the most that bitswap peers and gateways pass on. */
export const BLOCK_BYTES_MAX: number = 2 * 1024 * 1024

/** Weight of the newest answer in the latency that is kept: a change shows after some five answers. */
const LATENCY_WEIGHT = 0.2

/** How long a provider is left alone after a failure, in ms, doubling with each one: from one retry of TCP's to a minute. */
const BACK_OFF_MIN_MS = 500
const BACK_OFF_MAX_MS = 60_000

/** How long a provider that sent wrong bytes comes last, in ms. 10 min: longer than any pull, shorter than a shift. */
const DISTRUST_MS = 600_000

/** One place that blocks come from: a gateway, or a bitswap peer. */
export interface BlockProvider {
  /** "gateway http://10.0.0.7:8080": for sentences and logs. */
  readonly name: string
  readonly kind: 'gateway' | 'bitswap'
  readonly health: ProviderHealth
  /**
   * One block, verified. Rejects with BlockError: NOT_FOUND (it does not have it), UNAVAILABLE (it cannot be asked),
   * DATA_LOSS (it sent other bytes), CANCELLED or DEADLINE_EXCEEDED (`signal`).
   */
  get(cid: CID, signal: AbortSignal): Promise<Uint8Array>
}

/** How a provider has done so far, and so when to ask it. `now` is in ms, of any fixed zero. */
export class ProviderHealth {
  readonly #now: () => number
  #latencyMs: number | undefined
  #failures = 0
  #restsUntil = 0
  #distrustedUntil = 0

  constructor(now: () => number = () => performance.now()) {
    this.#now = now
  }

  /** Moving average of how long a block takes, in ms; undefined until there was one. */
  get latencyMs(): number | undefined {
    return this.#latencyMs
  }

  /** 0: ask it; 1: it failed lately; 2: it sent wrong bytes lately. */
  get standing(): 0 | 1 | 2 {
    const now = this.#now()
    if (now < this.#distrustedUntil) return 2
    return now < this.#restsUntil ? 1 : 0
  }

  succeeded(ms: number): void {
    this.#failures = 0
    this.#restsUntil = 0
    this.#latencyMs =
      this.#latencyMs === undefined ? ms : this.#latencyMs + LATENCY_WEIGHT * (ms - this.#latencyMs)
  }

  /** It could not be asked. `retryAfterMs` is what it said itself. */
  failed(retryAfterMs = 0): void {
    const backOffMs = Math.min(BACK_OFF_MIN_MS * 2 ** this.#failures, BACK_OFF_MAX_MS)
    this.#failures++
    this.#restsUntil = this.#now() + Math.max(backOffMs, Math.min(retryAfterMs, BACK_OFF_MAX_MS))
  }

  sentWrongBytes(): void {
    this.#distrustedUntil = this.#now() + DISTRUST_MS
  }
}

/** What `signal` being aborted means for the block `cid`; `so far` is added for those who wonder what was tried. */
export function abortedGet(cid: CID, { reason }: AbortSignal, soFar = ''): BlockError {
  if (reason instanceof BlockError && soFar === '') return reason
  const late = reason instanceof Error && /Timeout|DEADLINE/.test(`${reason.name}${codeOf(reason)}`)
  const tried = soFar === '' ? '' : `; ${soFar}`
  return new BlockError(
    late ? 'DEADLINE_EXCEEDED' : 'CANCELLED',
    `block ${cid.toString()} ${late ? 'did not arrive in time' : 'is no longer wanted'}${tried}`,
    { cid: cid.toString() },
    reason,
  )
}

function codeOf(error: Error): string {
  return 'code' in error ? String(error.code) : ''
}
