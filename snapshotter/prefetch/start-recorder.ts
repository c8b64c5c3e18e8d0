import type { TracedRead } from '../fuse/read-trace.ts'
import { FirstUses } from './first-uses.ts'
import { RANGES_MAX } from './prefetch-list.ts'

/** Time between two looks at what was read, in ms. A tenth of what the rings of the threads hold. */
const DRAIN_INTERVAL_MS = 100

/** A start is over when nothing new was read for so long, in ms. 5 s: slow starts pause for a lock, a connection, a compiler; rarely longer. */
export const REST_MS = 5_000

/** And after this in any case, in ms: a minute; from then on it is work, not a start. */
export const WINDOW_MS = 60_000

/** How long a mount may wait for its first read, in ms. 2 min: the kubelet creates a container and starts it, within seconds. */
export const UNUSED_MS = 120_000

/** Bytes of which the first use is recorded. 256 MiB: a second of prefetching; a start that reads more is better pulled whole. */
export const LEARNED_BYTES_MAX: number = 256 * 1024 ** 2

/** What is read from, as `ReadTrace`. */
export type TraceSource = {
  start(): void
  stop(): void
  drain(): TracedRead[]
}

type Parts = {
  readonly trace: TraceSource
  readonly layerOf: (inode: number) => number
  /** Reads that wait for bytes now: while one does, silence is no rest. */
  readonly waiting: () => number
  /** Milliseconds, from any start. */
  readonly now: () => number
}

/** What is read of some layers, from one moment to another. */
export class Recording implements Disposable {
  readonly uses: FirstUses
  /** Resolves when it has ended. */
  readonly ended: Promise<void>
  readonly #layers: ReadonlySet<number>
  readonly #startedMs: number
  readonly #isBounded: boolean
  readonly #end: () => void
  #firstUseMs: number | undefined
  #lastUseMs: number

  constructor(
    { layers, isBounded, bytesMax }: RecordingOptions,
    startedMs: number,
    onEnd: (recording: Recording) => void,
  ) {
    this.uses = new FirstUses({ bytesMax, rangesMax: RANGES_MAX })
    this.#layers = layers
    this.#isBounded = isBounded
    this.#startedMs = startedMs
    this.#lastUseMs = startedMs
    const { promise, resolve } = Promise.withResolvers<void>()
    this.ended = promise
    this.#end = () => {
      onEnd(this)
      resolve()
    }
  }

  /** Notes a read if it is of one of its layers. */
  add({ layer, start, end }: { layer: number; start: number; end: number }, nowMs: number): void {
    if (!this.#layers.has(layer) || !this.uses.add({ layer, start, end })) return
    this.#firstUseMs ??= nowMs
    this.#lastUseMs = nowMs
  }

  /** Whether the start is over. `isWaiting`: a read waits for bytes. */
  isOver(nowMs: number, isWaiting: boolean): boolean {
    if (!this.#isBounded) return false
    if (this.#firstUseMs === undefined) return nowMs - this.#startedMs > UNUSED_MS
    if (this.uses.isFull || nowMs - this.#firstUseMs > WINDOW_MS) return true
    return !isWaiting && nowMs - this.#lastUseMs > REST_MS
  }

  /** Ends it now. */
  end(): void {
    this.#end()
  }

  [Symbol.dispose](): void {
    this.#end()
  }
}

export type RecordingOptions = {
  /** The layers whose reads count. */
  readonly layers: ReadonlySet<number>
  /** Whether it ends by itself, with the start. */
  readonly isBounded: boolean
  readonly bytesMax: number
}

/** Records what starting containers read. Threads note reads only while something is recorded. */
export class StartRecorder implements Disposable {
  readonly #parts: Parts
  readonly #recordings = new Set<Recording>()
  #timer: NodeJS.Timeout | undefined

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Begins to record; reads that arrive from now on count. */
  record(options: RecordingOptions): Recording {
    this.#collect()
    const recording = new Recording(options, this.#parts.now(), (ended) => this.#ended(ended))
    if (this.#recordings.size === 0) {
      this.#parts.trace.drain()
      this.#parts.trace.start()
      this.#timer = setInterval(() => this.tick(), DRAIN_INTERVAL_MS).unref()
    }
    this.#recordings.add(recording)
    return recording
  }

  /** Takes what was read since the last call, and ends what is over. */
  tick(): void {
    this.#collect()
    const [nowMs, isWaiting] = [this.#parts.now(), this.#parts.waiting() > 0]
    for (const recording of this.#recordings) {
      if (recording.isOver(nowMs, isWaiting)) recording.end()
    }
  }

  [Symbol.dispose](): void {
    for (const recording of this.#recordings) recording.end()
  }

  #collect(): void {
    if (this.#recordings.size === 0) return
    const { trace, layerOf, now } = this.#parts
    const nowMs = now()
    for (const { inode, offset, length } of trace.drain()) {
      const read = { layer: layerOf(inode), start: offset, end: offset + length }
      for (const recording of this.#recordings) recording.add(read, nowMs)
    }
  }

  #ended(recording: Recording): void {
    // What threads noted until now is its own still.
    this.#collect()
    if (!this.#recordings.delete(recording) || this.#recordings.size > 0) return
    this.#parts.trace.stop()
    clearInterval(this.#timer)
  }
}
