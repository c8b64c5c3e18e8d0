import type { CID } from 'multiformats/cid'
import type { BlockMemory, BlockRequest, Priority } from '../../snapshotter/block-source.ts'
import { BlockError } from '../../snapshotter/errors.ts'
import { abortedGet, type BlockOrder, type BlockProvider } from './block-provider.ts'

/**
 * How long the one asked may take before the next is asked as well, in ms: three times its usual, within these bounds. The lower
 * keeps hiccups from doubling traffic; the upper, an eighth of a page fault's deadline, lets four be tried within it.
 */
const HEDGE_MIN_MS = 50
const HEDGE_MAX_MS = 2_000
/** Before there is a usual: a lookup on a distant gateway. */
const HEDGE_UNKNOWN_MS = 500
const HEDGE_FACTOR = 3
/** One that said it is at work may be silent for so long, in ms: eight of the signs that agents give (cluster/block-service.ts). */
const HEDGE_WORKING_MS = 2_000
/** And such signs count for so long, in ms. 10 s: a third of a page fault's deadline, so that two more can be tried within it. */
const WORKING_MS_MAX = 10_000

/** Told of each answer, to count and to warn. */
export type RaceOutcomes = {
  readonly won: (provider: BlockProvider, bytes: number) => void
  readonly wrongBytes: (provider: BlockProvider, error: BlockError) => void
}

/** Asks providers for one block, one after another and overlapping if somebody waits, until one has sent it. */
export class BlockRace {
  readonly #cid: CID
  readonly #remaining: BlockProvider[]
  readonly #spare: BlockProvider[]
  readonly #outcomes: RaceOutcomes
  readonly #signal: AbortSignal
  readonly #losers = new AbortController()
  readonly #escalated = new AbortController()
  readonly #running = new Set<BlockProvider>()
  readonly #failures: { provider: BlockProvider; error: BlockError }[] = []
  readonly #result = Promise.withResolvers<Uint8Array>()
  readonly #memory: BlockMemory | undefined
  #priority: Priority
  #timer: NodeJS.Timeout | undefined
  #over = false

  constructor(
    cid: CID,
    { first, spare }: BlockOrder,
    { priority, signal, memory }: BlockRequest,
    outcomes: RaceOutcomes,
  ) {
    this.#cid = cid
    this.#remaining = [...first]
    this.#spare = [...spare]
    this.#priority = priority
    this.#memory = memory
    this.#signal = signal
    this.#outcomes = outcomes
  }

  /** The block. Rejects with BlockError, whose sentence says what each provider answered. */
  async run(): Promise<Uint8Array> {
    const onAbort = (): void => this.#finish(() => this.#result.reject(this.#aborted()))
    if (this.#signal.aborted) throw this.#aborted()
    this.#signal.addEventListener('abort', onAbort, { once: true })
    this.#askNext()
    try {
      return await this.#result.promise
    } finally {
      this.#signal.removeEventListener('abort', onAbort)
    }
  }

  /** Somebody has joined who waits for the block now. */
  escalate(): void {
    if (this.#priority === 'foreground') return
    this.#priority = 'foreground'
    this.#escalated.abort()
    const [slow] = this.#running
    if (!this.#over && slow !== undefined) this.#hedge(slow)
  }

  #askNext(): void {
    const isIdle = this.#running.size === 0
    const provider = this.#remaining.shift() ?? (isIdle ? this.#spare.shift() : undefined)
    if (provider === undefined) {
      if (isIdle) this.#finish(() => this.#result.reject(this.#nobodyHasIt()))
      return
    }
    this.#running.add(provider)
    this.#hedge(provider)
    void this.#ask(provider)
  }

  async #ask(provider: BlockProvider): Promise<void> {
    const askedMs = performance.now()
    const isWorking = (): void => {
      const isOld = performance.now() - askedMs > WORKING_MS_MAX
      if (this.#over || isOld || !this.#running.has(provider)) return
      this.#hedgeAfter(Math.max(HEDGE_WORKING_MS, hedgeMs(provider)))
    }
    try {
      const bytes = await provider.get(this.#cid, this.#losers.signal, {
        priority: this.#priority,
        escalated: this.#escalated.signal,
        isWorking,
        memory: this.#memory,
      })
      if (this.#over) return
      this.#running.delete(provider)
      this.#outcomes.won(provider, bytes.length)
      this.#doubtHomes()
      this.#finish(() => this.#result.resolve(bytes))
    } catch (error) {
      this.#running.delete(provider)
      if (this.#over) return
      if (error instanceof BlockError) this.#lost(provider, error)
      else this.#finish(() => this.#result.reject(error))
    }
  }

  #lost(provider: BlockProvider, error: BlockError): void {
    this.#failures.push({ provider, error })
    if (error.code === 'DATA_LOSS') this.#outcomes.wrongBytes(provider, error)
    this.#askNext()
  }

  #hedge(provider: BlockProvider): void {
    this.#hedgeAfter(hedgeMs(provider))
  }

  #hedgeAfter(ms: number): void {
    clearTimeout(this.#timer)
    if (this.#priority === 'background') return
    const timer = setTimeout(() => {
      // After what has come meanwhile was read: it may have been this process that paused.
      setImmediate(() => {
        // One that failed lately or lied is asked when all others have failed, not for speed.
        const isGood = this.#remaining[0]?.health.standing === 0
        if (timer === this.#timer && !this.#over && isGood) this.#askNext()
      })
    }, ms)
    this.#timer = timer
  }

  /** An agent that fetches for others and could not get what was to be had is not asked for a while. */
  #doubtHomes(): void {
    for (const { provider, error } of this.#failures) {
      if (provider.kind === 'cluster' && error.code === 'NOT_FOUND') provider.health.failed()
    }
  }

  #finish(settle: () => void): void {
    if (this.#over) return
    this.#over = true
    clearTimeout(this.#timer)
    settle()
    // Making an error takes its stack, a tenth of what a small block costs: only where somebody is told.
    if (this.#running.size === 0) return
    this.#losers.abort(
      new BlockError('CANCELLED', `block ${this.#cid.toString()} came from elsewhere`),
    )
  }

  #aborted(): BlockError {
    const waiting = [...this.#running].map(({ name }) => `${name} has not answered yet`)
    return abortedGet(this.#cid, this.#signal, [...this.#said(), ...waiting].join('; '))
  }

  #nobodyHasIt(): BlockError {
    const codes = new Set(this.#failures.map(({ error }) => error.code))
    // One who could not be asked may have it, so that comes before those who said no.
    const code =
      codes.size === 0 || codes.has('UNAVAILABLE') || codes.has('DEADLINE_EXCEEDED')
        ? 'UNAVAILABLE'
        : codes.has('DATA_LOSS')
          ? 'DATA_LOSS'
          : codes.has('UNIMPLEMENTED')
            ? 'UNIMPLEMENTED'
            : 'NOT_FOUND'
    const said =
      codes.size === 0
        ? 'there is nobody to ask: put gateways or peers in the config (ipfs.gateways, ipfs.peers)'
        : this.#said().join('; ')
    const cid = this.#cid.toString()
    return new BlockError(code, `${noneHas(cid)}${said}`, { cid })
  }

  #said(): string[] {
    return this.#failures.map(({ error }) => error.message)
  }
}

/** How long the provider may take before somebody else is asked as well, in ms. */
export function hedgeMs({ health: { latencyMs }, hedge }: BlockProvider): number {
  const { minMs, maxMs } = hedge ?? { minMs: HEDGE_MIN_MS, maxMs: HEDGE_MAX_MS }
  const delay = latencyMs === undefined ? HEDGE_UNKNOWN_MS : HEDGE_FACTOR * latencyMs
  return Math.min(Math.max(delay, minMs), maxMs)
}

/** What each provider said, without the beginning of the sentence, to stand within another one. */
export function whatWasSaid(cid: CID, { message }: BlockError): string {
  const beginning = noneHas(cid.toString())
  return message.startsWith(beginning) ? message.slice(beginning.length) : message
}

function noneHas(cid: string): string {
  return `block ${cid} cannot be had: `
}
