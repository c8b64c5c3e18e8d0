/** Readers told apart in one layer. 4: the kernel's readahead of one reader comes as a few reads at once, and two processes may read. */
const STREAMS_MAX = 4

/** Units that a reader waited for one behind the other before it counts as reading on. 4: a start skips about, and rarely comes so far. */
const RUN_MIN = 4

/** Reads of one window arrive in any order: so many units may be skipped, or come late. */
const SLACK_UNITS = 2

/**
 * Bytes of the layer that are fetched ahead at most; before that as many as were read, so that what is fetched in vain is never more. 16 MiB:
 * some 5 MB on the wire, four times what 100 Mbit/s hold on the way at 80 ms.
 */
const MOST_BYTES = 16 * 1024 ** 2

/** A reader that goes on from front to back. */
type Stream = {
  /** The unit it began with. */
  readonly first: number
  /** The unit last waited for. */
  last: number
  /** The first that was neither waited for nor fetched ahead. */
  next: number
  run: number
}

/**
 * Tells which units of a layer will be read next by whoever reads it from front to back: one that waits for each would leave the
 * network idle for a round trip each time. Units are those of ascending files, as whoever reads a whole image reads them.
 */
export class ReadAhead {
  readonly #starts: Float64Array
  /** Least recently used first. */
  #streams: Stream[] = []

  /** `starts` as of a layer's map. */
  constructor(starts: Float64Array) {
    this.#starts = starts
  }

  /** Somebody waits for unit `unit`. The units to fetch now, ascending, whether or not they are here. */
  waitedFor(unit: number): number[] {
    const stream = this.#streamOf(unit)
    if (unit > stream.last) stream.run += 1
    stream.last = Math.max(stream.last, unit)
    const from = Math.max(stream.next, unit + 1)
    stream.next = from
    if (stream.run < RUN_MIN) return []
    const here = this.#starts[unit + 1] ?? 0
    const end = here + Math.min(here - (this.#starts[stream.first] ?? 0), MOST_BYTES)
    const ahead: number[] = []
    for (let next = from; (this.#starts[next + 1] ?? Number.POSITIVE_INFINITY) <= end; next++) {
      ahead.push(next)
    }
    stream.next = from + ahead.length
    return ahead
  }

  #streamOf(unit: number): Stream {
    const found = this.#streams.find(
      ({ last, next }) => unit >= last - SLACK_UNITS && unit <= next + SLACK_UNITS,
    )
    const stream = found ?? { first: unit, last: unit - 1, next: unit, run: 0 }
    const others = this.#streams.filter((other) => other !== stream)
    this.#streams = [...others, stream].slice(-STREAMS_MAX)
    return stream
  }
}
