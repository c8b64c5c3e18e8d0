import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { isMainThread } from 'node:worker_threads'

// Loaded by `--import` into the data worker of a benchmark: once a second it writes how long the event loop kept a timer waiting since
// the folder has a file `begin`.

/** A timer's period, in ms: what blocks for less than this is not seen. */
const RESOLUTION_MS = 1

/** Upper bounds of what is counted, in ms. */
const BOUNDS_MS = [2, 5, 10, 20, 50, 100] as const

/** What the file holds: how many times the loop was late by at most so many ms, and by more than the last of them. */
export type EventLoopRecord = {
  readonly counts: readonly { readonly atMostMs: number | null; readonly count: number }[]
  readonly p50Ms: number
  readonly p99Ms: number
  readonly maxMs: number
}

const folder = process.env['IPDR_EVENT_LOOP_DIR']
if (isMainThread && folder !== undefined && process.argv[2] === 'data-worker') {
  record(folder)
}

function record(folder: string): void {
  const delays = monitorEventLoopDelay({ resolution: RESOLUTION_MS })
  setInterval(() => {
    if (!existsSync(join(folder, 'begin'))) return
    // False if it was begun before.
    if (delays.enable()) return
    writeFileSync(join(folder, 'event-loop.json'), JSON.stringify(recordOf(delays)))
  }, 1000).unref()
}

function recordOf(delays: ReturnType<typeof monitorEventLoopDelay>): EventLoopRecord {
  // The period itself is part of what is recorded.
  const ms = (nanoseconds: number): number => Math.max(0, nanoseconds / 1e6 - RESOLUTION_MS)
  const upTo = BOUNDS_MS.map((bound) => countUpTo(delays, (bound + RESOLUTION_MS) * 1e6))
  const counts = BOUNDS_MS.map((atMostMs, at) => ({
    atMostMs,
    count: (upTo[at] ?? 0) - (upTo[at - 1] ?? 0),
  }))
  const more = { atMostMs: null, count: delays.count - (upTo.at(-1) ?? 0) }
  return {
    counts: [...counts, more],
    p50Ms: ms(delays.percentile(50)),
    p99Ms: ms(delays.percentile(99)),
    maxMs: ms(delays.max),
  }
}

/** By bisection: a histogram tells values of percentiles, not the other way round. */
function countUpTo(delays: ReturnType<typeof monitorEventLoopDelay>, value: number): number {
  if (delays.count === 0 || delays.max <= value) return delays.count
  let [low, high] = [0, 100]
  for (let step = 0; step < 40; step++) {
    const middle = (low + high) / 2
    if (middle > 0 && delays.percentile(middle) <= value) low = middle
    else high = middle
  }
  return Math.round((low / 100) * delays.count)
}
