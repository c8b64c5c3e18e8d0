import type { BlockRequest, Priority } from '../block-source.ts'
import { BlockError } from '../errors.ts'

export type FetchLimits = {
  /** Fetches at once, of any priority. */
  readonly total: number
  /** Fetches at once that are not foreground, and of those the background ones: the rest is kept free for page faults. */
  readonly prefetch: number
  readonly background: number
  /** Fetches that may wait; beyond it prefetch and background are refused. */
  readonly waiting: number
  /** The same for the foreground. */
  readonly waitingForeground: number
  /** How long an asker waits, from the moment it asks, in ms. */
  readonly deadlineMs: Readonly<Record<Priority, number>>
}

/**
 * total 16: 250 MB/s (research: helia, HTTP) at 50 ms a round trip is 12.5 MB, 12 units of 1 MiB on the way.
 * waiting 4,096: 4 GiB of units of 1 MiB. waitingForeground 32,768: 1,024 reads of the kernel with 16 units each, twice.
 * deadlines: a page fault that waits longer than 30 s is a broken container; routing takes three lookups of about 5 s
 * and one retry. A prefetch may sit behind others: 2 minutes; a background fetch: 10.
 */
export const DEFAULT_FETCH_LIMITS: FetchLimits = {
  total: 16,
  prefetch: 12,
  background: 4,
  waiting: 4_096,
  waitingForeground: 32_768,
  deadlineMs: { foreground: 30_000, prefetch: 120_000, background: 600_000 },
}

/**
 * What a fetch is told when its turn comes. `signal` aborts when nobody waits for it any more, `escalated` when a page fault
 * has come to wait for it that began as less.
 */
export type FetchRequest = Required<Omit<BlockRequest, 'memory'>>

const PRIORITIES = ['foreground', 'prefetch', 'background'] as const

type Waiter<Result> = {
  readonly resolve: (result: Result) => void
  readonly reject: (error: unknown) => void
  readonly release: () => void
}

type Fetch<Result> = {
  readonly key: string
  priority: Priority
  running: boolean
  readonly task: (request: FetchRequest) => Promise<Result>
  readonly abandon: AbortController
  readonly escalate: AbortController
  readonly waiters: Set<Waiter<Result>>
}

/**
 * The one queue of the process for what must be fetched: page faults before prefetch before background, first come
 * first served among equals, and what several ask for is fetched once.
 */
export class FetchQueue<Result> {
  readonly #limits: FetchLimits
  /** What is asked for, waiting or running, by key. */
  readonly #fetches = new Map<string, Fetch<Result>>()
  /** The waiting ones in the order of their turns. */
  readonly #waiting: Readonly<Record<Priority, Set<Fetch<Result>>>> = {
    foreground: new Set(),
    prefetch: new Set(),
    background: new Set(),
  }
  readonly #running = new Set<Fetch<Result>>()
  /** Keys whose abandoned task has not come to its end: not to be run a second time beside it. */
  readonly #unwinding = new Set<string>()

  constructor(limits: FetchLimits = DEFAULT_FETCH_LIMITS) {
    this.#limits = limits
  }

  /**
   * The result of `task`, or of one under the same key that waits or runs. Asking again with a higher priority moves a
   * waiting one up. Rejects with the task's error, or with BlockError: CANCELLED (`signal`), DEADLINE_EXCEEDED,
   * RESOURCE_EXHAUSTED (too many wait).
   */
  async run(
    key: string,
    priority: Priority,
    task: (request: FetchRequest) => Promise<Result>,
    signal: AbortSignal,
  ): Promise<Result> {
    if (signal.aborted) throw cancelled(key)
    const fetch = this.#join(key, priority) ?? this.#enqueue(key, priority, task)
    const result = this.#wait(fetch, priority, signal)
    this.#startNext()
    return result
  }

  /** How long an asker waits, in ms. */
  get deadlineMs(): Readonly<Record<Priority, number>> {
    return this.#limits.deadlineMs
  }

  /** How many wait, by priority. */
  get depth(): Readonly<Record<Priority, number>> {
    const { foreground, prefetch, background } = this.#waiting
    return {
      foreground: foreground.size,
      prefetch: prefetch.size,
      background: background.size,
    }
  }

  /** How many run. */
  get running(): number {
    return this.#running.size
  }

  #join(key: string, priority: Priority): Fetch<Result> | undefined {
    const fetch = this.#fetches.get(key)
    if (fetch === undefined || rank(fetch.priority) <= rank(priority)) return fetch
    if (this.#waiting[fetch.priority].delete(fetch)) this.#waiting[priority].add(fetch)
    // A running one is not started anew, but leaves the share of the lower priority, and tells who fetches for it.
    fetch.priority = priority
    if (priority === 'foreground') fetch.escalate.abort()
    return fetch
  }

  #enqueue(key: string, priority: Priority, task: Fetch<Result>['task']): Fetch<Result> {
    const { foreground, prefetch, background } = this.depth
    const full =
      priority === 'foreground'
        ? foreground >= this.#limits.waitingForeground
        : prefetch + background >= this.#limits.waiting
    if (full) {
      throw new BlockError(
        'RESOURCE_EXHAUSTED',
        `${foreground} page faults, ${prefetch} prefetches and ${background} background fetches wait already: ${key} is not added`,
        { key, foreground, prefetch, background },
      )
    }
    const [abandon, escalate] = [new AbortController(), new AbortController()]
    const waiters = new Set<Waiter<Result>>()
    const fetch = { key, priority, task, abandon, escalate, waiters, running: false }
    this.#fetches.set(key, fetch)
    this.#waiting[priority].add(fetch)
    return fetch
  }

  #wait(fetch: Fetch<Result>, priority: Priority, signal: AbortSignal): Promise<Result> {
    const { promise, resolve, reject } = Promise.withResolvers<Result>()
    const deadlineMs = this.#limits.deadlineMs[priority]
    const giveUp = (error: BlockError): void => {
      waiter.release()
      fetch.waiters.delete(waiter)
      reject(error)
      if (fetch.waiters.size === 0) this.#abandon(fetch)
    }
    const onAbort = (): void => giveUp(cancelled(fetch.key))
    const timer = setTimeout(() => giveUp(tooLate(fetch, deadlineMs)), deadlineMs)
    const release = (): void => {
      clearTimeout(timer)
      signal.removeEventListener('abort', onAbort)
    }
    const waiter: Waiter<Result> = { resolve, reject, release }
    signal.addEventListener('abort', onAbort, { once: true })
    fetch.waiters.add(waiter)
    return promise
  }

  #startNext(): void {
    for (let next = this.#next(); next !== undefined; next = this.#next()) {
      this.#waiting[next.priority].delete(next)
      this.#running.add(next)
      next.running = true
      void this.#execute(next)
    }
  }

  /** Whose turn it is, if a place is free for it. */
  #next(): Fetch<Result> | undefined {
    if (this.#running.size >= this.#limits.total) return undefined
    for (const priority of PRIORITIES) {
      if (!this.#hasPlace(priority)) continue
      for (const fetch of this.#waiting[priority]) {
        if (!this.#unwinding.has(fetch.key)) return fetch
      }
    }
    return undefined
  }

  #hasPlace(priority: Priority): boolean {
    if (priority === 'foreground') return true
    const running = [...this.#running]
    const background = running.filter((fetch) => fetch.priority === 'background').length
    if (priority === 'background' && background >= this.#limits.background) return false
    const others = running.filter((fetch) => fetch.priority !== 'foreground').length
    return others < this.#limits.prefetch
  }

  async #execute(fetch: Fetch<Result>): Promise<void> {
    try {
      const { priority, abandon, escalate } = fetch
      const request = { priority, signal: abandon.signal, escalated: escalate.signal }
      const result = await fetch.task(request)
      this.#finish(fetch, (waiter) => waiter.resolve(result))
    } catch (error) {
      this.#finish(fetch, (waiter) => waiter.reject(error))
    }
  }

  #finish(fetch: Fetch<Result>, settle: (waiter: Waiter<Result>) => void): void {
    this.#running.delete(fetch)
    if (fetch.abandon.signal.aborted) this.#unwinding.delete(fetch.key)
    else this.#fetches.delete(fetch.key)
    for (const waiter of fetch.waiters) {
      waiter.release()
      settle(waiter)
    }
    this.#startNext()
  }

  /** Nobody waits for it any more. Its place is free at once, its key when the task has come to its end. */
  #abandon(fetch: Fetch<Result>): void {
    this.#fetches.delete(fetch.key)
    this.#waiting[fetch.priority].delete(fetch)
    if (this.#running.delete(fetch)) this.#unwinding.add(fetch.key)
    fetch.abandon.abort()
    this.#startNext()
  }
}

/** 0 for the most urgent. */
function rank(priority: Priority): number {
  return PRIORITIES.indexOf(priority)
}

function cancelled(key: string): BlockError {
  return new BlockError('CANCELLED', `the fetch of ${key} was cancelled by who asked for it`, {
    key,
  })
}

function tooLate(fetch: { key: string; running: boolean }, deadlineMs: number): BlockError {
  return new BlockError(
    'DEADLINE_EXCEEDED',
    `${fetch.key} did not arrive within ${deadlineMs} ms: ${fetch.running ? 'no source delivered it' : 'other fetches were before it'}`,
    { key: fetch.key, deadlineMs },
  )
}
