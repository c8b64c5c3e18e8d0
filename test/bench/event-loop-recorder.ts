import { existsSync, openSync, readSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { monitorEventLoopDelay, PerformanceObserver, performance } from 'node:perf_hooks'
import { isMainThread } from 'node:worker_threads'

// Loaded by `--import` into the data worker of a benchmark: once a second it writes how long the event loop kept a timer waiting since
// the folder has a file `begin`.

/** A timer's period, in ms: what blocks for less than this is not seen. */
const RESOLUTION_MS = 1

/** How often it is looked whether the loop was late, and why, in ms. */
const WATCH_MS = 5

/** Upper bounds of what is counted, in ms. */
const BOUNDS_MS = [2, 5, 10, 20, 50, 100] as const

/** Late by more is looked into, in ms: the limit. */
const LATE_MS = 20

/** What kept the main thread when it was late, by what it was most of the time. */
const CAUSES = ['work', 'garbage', 'processor', 'blocked'] as const

/** What the file holds: how many times the loop was late by at most so many ms, and by more than the last of them. */
export type EventLoopRecord = {
  readonly counts: readonly { readonly atMostMs: number | null; readonly count: number }[]
  readonly p50Ms: number
  readonly p99Ms: number
  readonly maxMs: number
  /**
   * How often it was late by more than LATE_MS because it worked, because its garbage was collected, because the kernel gave the processor to
   * others though it could have run, and because it waited in a system call or for another thread. Looked at by a timer of its own, which
   * may count one that the histogram has as less.
   */
  readonly causes: Readonly<Record<(typeof CAUSES)[number], number>>
}

const folder = process.env['IPDR_EVENT_LOOP_DIR']
if (isMainThread && folder !== undefined && process.argv[2] === 'data-worker') {
  record(folder)
}

function record(folder: string): void {
  const delays = monitorEventLoopDelay({ resolution: RESOLUTION_MS })
  const causes = { work: 0, garbage: 0, processor: 0, blocked: 0 }
  watchCauses(causes)
  setInterval(() => {
    if (!existsSync(join(folder, 'begin'))) return
    // False if it was begun before.
    if (delays.enable()) {
      for (const cause of CAUSES) causes[cause] = 0
      return
    }
    writeFileSync(join(folder, 'event-loop.json'), JSON.stringify(recordOf(delays, causes)))
  }, 1000).unref()
}

function watchCauses(causes: Record<(typeof CAUSES)[number], number>): void {
  let garbageMs = 0
  new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) garbageMs += duration
  }).observe({ entryTypes: ['gc'] })
  // Of the main thread, in ns: what it ran, and what it could have run (Documentation/scheduler/sched-stats.rst).
  const file = openSync(`/proc/self/task/${process.pid}/schedstat`, 'r')
  // The same each time: garbage would be the memory of what is measured.
  const bytes = Buffer.alloc(100)
  const scheduled = (): { ranMs: number; waitedMs: number } => {
    const text = bytes.toString('latin1', 0, readSync(file, bytes, 0, bytes.length, 0))
    const [ran = 0, waited = 0] = text.split(' ').map(Number)
    return { ranMs: ran / 1e6, waitedMs: waited / 1e6 }
  }
  let [last, before] = [performance.now(), scheduled()]
  setInterval(() => {
    const [now, after] = [performance.now(), scheduled()]
    const [lateMs, ranMs, waitedMs] = [
      now - last - WATCH_MS,
      after.ranMs - before.ranMs,
      after.waitedMs - before.waitedMs,
    ]
    const garbageBefore = garbageMs
    ;[last, before] = [now, after]
    if (lateMs <= LATE_MS) return
    // What is told of collections comes a turn later.
    setImmediate(() => {
      if (waitedMs > lateMs / 2) causes.processor += 1
      else if (garbageMs - garbageBefore > lateMs / 2) causes.garbage += 1
      else if (ranMs > lateMs / 2) causes.work += 1
      else causes.blocked += 1
    })
  }, WATCH_MS).unref()
}

function recordOf(
  delays: ReturnType<typeof monitorEventLoopDelay>,
  causes: EventLoopRecord['causes'],
): EventLoopRecord {
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
    causes,
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
