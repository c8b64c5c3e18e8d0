/** Reads kept for each thread until they are drained. 8,192: a thread answers some 12,000 a second, they are drained ten times in it. */
const ENTRIES = 8192
const CELLS = 4

/** What serving threads note about reads, on shared memory; nothing unless `recording`. */
export type SharedTrace = {
  /** [0]: 1 while reads are noted. [1]: rises with each read of any thread, so that they can be put in order. */
  readonly control: Int32Array
  /** A ring of this thread's reads: number, inode, offset, length. */
  readonly ring: Float64Array
  /** [0]: how many it has noted; written after the entry, so that what is counted is whole. */
  readonly written: Int32Array
}

/** A READ of the kernel, whether its bytes were here or not. */
export type TracedRead = {
  readonly inode: number
  readonly offset: number
  readonly length: number
}

/** Notes a read, on the thread that serves it: some 20 ns, where the read itself takes 70 µs. */
export function traceRead(trace: SharedTrace, inode: number, offset: number, length: number): void {
  if (Atomics.load(trace.control, 0) === 0) return
  const written = trace.written[0] ?? 0
  const at = ((written >>> 0) % ENTRIES) * CELLS
  trace.ring[at] = Atomics.add(trace.control, 1, 1)
  trace.ring[at + 1] = inode
  trace.ring[at + 2] = offset
  trace.ring[at + 3] = length
  Atomics.store(trace.written, 0, written + 1)
}

/** Every READ that arrives, in order, while somebody wants to know: the main thread's end of what threads note. */
export class ReadTrace {
  readonly #control = new Int32Array(new SharedArrayBuffer(8))
  readonly #threads: { readonly shared: SharedTrace; drained: number }[] = []
  #lost = 0

  /** What one more thread notes on. */
  share(): SharedTrace {
    const shared = {
      control: this.#control,
      ring: new Float64Array(new SharedArrayBuffer(ENTRIES * CELLS * 8)),
      written: new Int32Array(new SharedArrayBuffer(4)),
    }
    this.#threads.push({ shared, drained: 0 })
    return shared
  }

  /** Notes reads from now on. */
  start(): void {
    Atomics.store(this.#control, 0, 1)
  }

  /** Notes none any more. */
  stop(): void {
    Atomics.store(this.#control, 0, 0)
  }

  /** Reads that came faster than they were drained, and are not known. */
  get lost(): number {
    return this.#lost
  }

  /** The reads since the last call, in the order in which they arrived. */
  drain(): TracedRead[] {
    const reads: (TracedRead & { readonly number: number })[] = []
    for (const thread of this.#threads) {
      const { ring, written } = thread.shared
      const end = Atomics.load(written, 0)
      const fresh = (end - thread.drained) | 0
      const entries = Array.from({ length: Math.min(fresh, ENTRIES) }, (_, back) => {
        const at = (((end - 1 - back) >>> 0) % ENTRIES) * CELLS
        const [number = 0, inode = 0, offset = 0, length = 0] = ring.subarray(at, at + CELLS)
        return { number, inode, offset, length }
      })
      // The thread writes on: the entries that it has come round to meanwhile, and the one it is at, are not whole.
      const whole = ENTRIES - 1 - ((Atomics.load(written, 0) - end) | 0)
      const kept = entries.slice(0, Math.max(0, whole))
      this.#lost += fresh - kept.length
      reads.push(...kept)
      thread.drained = end
    }
    // By difference: the number comes round after two billion reads.
    return reads.toSorted((a, b) => (a.number - b.number) | 0)
  }
}
