/** The time as nanoseconds since the epoch. */
export type Clock = { now(): bigint }

const NS_PER_MS = 1_000_000n

/** How well the offset between the two clocks must be known, in ns. 2 µs: a few turns of the measuring loop. */
const OFFSET_WIDTH_NS = 2_000n

/** How far the wall clock may stray before it is measured again, in ns: a tick of `Date`, which a reading cannot see below. */
const DRIFT_NS = NS_PER_MS

/**
 * The wall clock in real nanoseconds. `Date.now()` cuts them off, so that what it stamps seems older than what the
 * caller did before it; `process.hrtime` has them but counts from the boot. This joins the two.
 */
export class WallClock implements Clock {
  #offset = offsetNow()

  now(): bigint {
    const time = process.hrtime.bigint() + this.#offset
    const tick = BigInt(Date.now()) * NS_PER_MS
    if (time > tick - DRIFT_NS && time < tick + NS_PER_MS + DRIFT_NS) return time
    // Somebody set the clock, or we were not scheduled between the two readings.
    this.#offset = offsetNow()
    return process.hrtime.bigint() + this.#offset
  }
}

/**
 * What to add to `process.hrtime` for the wall clock. Every reading of `Date` between two of hrtime bounds it: the wall
 * clock was then within that millisecond. Near a tick the bounds meet, which takes 1 ms at most; being interrupted
 * only makes a bound loose.
 */
function offsetNow(): bigint {
  let low: bigint | undefined
  let high: bigint | undefined
  for (;;) {
    const before = process.hrtime.bigint()
    const tick = BigInt(Date.now()) * NS_PER_MS
    const after = process.hrtime.bigint()
    const [least, most] = [tick - after, tick + NS_PER_MS - before]
    if (low === undefined || high === undefined || least > high || most < low) {
      // The first reading, or one that contradicts the others: the clock was set meanwhile.
      ;[low, high] = [least, most]
      continue
    }
    if (least > low) low = least
    if (most < high) high = most
    if (high - low <= OFFSET_WIDTH_NS) return (low + high) / 2n
  }
}
