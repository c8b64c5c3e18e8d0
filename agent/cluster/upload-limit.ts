import type { Priority } from '../../snapshotter/block-source.ts'
import { BlockError } from '../../snapshotter/errors.ts'
import { PRIORITY_RANK } from '../ipfs/block-provider.ts'

/** Blocks being sent at once. 32 of 512 KiB are 16 MiB in memory, of 2 MiB 64. */
const SENDING_MAX = 32

/** Longest wait for what lies ahead, in ms of sending at the limit; who would wait longer is refused, and asks elsewhere. */
const WAIT_MS_MAX = 2_000

type Waiting = {
  readonly bytes: number
  readonly rank: number
  readonly grant: () => void
}

/** Bounds what all answers together may send: a token bucket of one second, emptied by those who rank highest first. */
export class UploadLimit {
  readonly #bytesPerSecond: number
  readonly #now: () => number
  /** In the order in which they came. */
  readonly #queue = new Set<Waiting>()
  #sending = 0
  /** Below zero: sent on credit, to be waited for. */
  #tokens: number
  #filledMs: number
  #timer: NodeJS.Timeout | undefined

  constructor(bytesPerSecond: number, now: () => number = () => performance.now()) {
    this.#bytesPerSecond = bytesPerSecond
    this.#now = now
    this.#tokens = bytesPerSecond
    this.#filledMs = now()
  }

  /**
   * Waits until `bytes` may be sent; dispose of the turn when they are. Rejects with BlockError RESOURCE_EXHAUSTED if too much lies ahead,
   * and with the reason of `signal`.
   */
  async turn(bytes: number, priority: Priority, signal: AbortSignal): Promise<Disposable> {
    signal.throwIfAborted()
    const rank = PRIORITY_RANK[priority]
    this.#fill()
    const ahead = [...this.#queue].filter((other) => other.rank <= rank)
    const aheadBytes = ahead.reduce((sum, other) => sum + other.bytes, -this.#tokens)
    if (aheadBytes > (this.#bytesPerSecond * WAIT_MS_MAX) / 1000) {
      throw new BlockError(
        'RESOURCE_EXHAUSTED',
        `this node sends ${this.#bytesPerSecond} bytes a second at most, and ${Math.round(aheadBytes)} wait ahead`,
      )
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiting = { bytes, rank, grant: resolve }
    const leave = (): void => {
      if (this.#queue.delete(waiting)) reject(signal.reason)
    }
    signal.addEventListener('abort', leave, { once: true })
    this.#queue.add(waiting)
    this.#grant()
    try {
      await promise
    } finally {
      signal.removeEventListener('abort', leave)
    }
    let isOver = false
    return {
      [Symbol.dispose]: () => {
        if (isOver) return
        isOver = true
        this.#sending--
        this.#grant()
      },
    }
  }

  #fill(): void {
    const now = this.#now()
    const filled = this.#tokens + ((now - this.#filledMs) / 1000) * this.#bytesPerSecond
    this.#tokens = Math.min(filled, this.#bytesPerSecond)
    this.#filledMs = now
  }

  #grant(): void {
    clearTimeout(this.#timer)
    this.#fill()
    while (this.#sending < SENDING_MAX && this.#tokens >= 0) {
      const next = this.#next()
      if (next === undefined) return
      this.#queue.delete(next)
      this.#sending++
      this.#tokens -= next.bytes
      next.grant()
    }
    if (this.#queue.size === 0 || this.#sending >= SENDING_MAX) return
    const ms = Math.ceil((-this.#tokens / this.#bytesPerSecond) * 1000)
    this.#timer = setTimeout(() => this.#grant(), ms)
  }

  #next(): Waiting | undefined {
    let next: Waiting | undefined
    for (const waiting of this.#queue) {
      if (next === undefined || waiting.rank < next.rank) next = waiting
    }
    return next
  }
}
