import type { CID } from 'multiformats/cid'
import type {
  BlockMemory,
  FilePath,
  Priority,
  VerifiedBlock,
} from '../../snapshotter/block-source.ts'
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

/** Whose turn it is: lower ranks come first. */
export const PRIORITY_RANK: Readonly<Record<Priority, number>> = {
  foreground: 0,
  prefetch: 1,
  background: 2,
}

/** For whom a block is fetched, for providers that fetch it themselves first; and how these say that they are at it. */
export type BlockErrand = {
  readonly priority: Priority
  /** Aborts when somebody in the foreground has come to wait for it. */
  readonly escalated: AbortSignal
  /** The provider is slow, but it works on it: nobody else needs to be asked yet. */
  readonly isWorking: () => void
  /** Where to put the block. */
  readonly memory?: BlockMemory | undefined
}

/** One place that blocks come from: a gateway, a bitswap peer, another agent of the cluster, or all but the cluster ("origin"). */
export interface BlockProvider {
  /** "gateway http://10.0.0.7:8080": for sentences and logs. */
  readonly name: string
  readonly kind: 'gateway' | 'bitswap' | 'cluster' | 'origin'
  readonly health: ProviderHealth
  /** Bounds of the time after which somebody else is asked as well, in ms, if not the usual ones. */
  readonly hedge?: { readonly minMs: number; readonly maxMs: number }
  /**
   * One block, verified. Rejects with BlockError: NOT_FOUND (it does not have it), UNAVAILABLE (it cannot be asked),
   * DATA_LOSS (it sent other bytes), CANCELLED or DEADLINE_EXCEEDED (`signal`).
   */
  get(cid: CID, signal: AbortSignal, errand?: BlockErrand): Promise<Uint8Array>
  /**
   * The blocks of a file and of the way to it, by one request, verified as they come; not there if it cannot. Throws BlockError as `get`, and
   * OUT_OF_RANGE if they are more than `bytesMax`.
   */
  along?(path: FilePath, signal: AbortSignal): AsyncIterable<VerifiedBlock>
}

/** Whom to ask for one block: `first` in this order, and overlapping if somebody waits; `spare` when all of these have failed. */
export type BlockOrder = {
  readonly first: readonly BlockProvider[]
  readonly spare: readonly BlockProvider[]
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

  /** It could not be asked. `retryAfterMs` is what it said itself. Several that fail together are one failure. */
  failed(retryAfterMs = 0): void {
    const now = this.#now()
    if (now >= this.#restsUntil) this.#failures++
    const backOffMs = Math.min(BACK_OFF_MIN_MS * 2 ** (this.#failures - 1), BACK_OFF_MAX_MS)
    this.#restsUntil = now + Math.max(backOffMs, Math.min(retryAfterMs, BACK_OFF_MAX_MS))
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
