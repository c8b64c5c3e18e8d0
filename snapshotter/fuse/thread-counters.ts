/** Where a serving thread counts, behind one cell for the requests of each opcode (OPCODE_COUNT). */
export const Cell = { HITS: 64, HIT_BYTES: 65, MISSES: 66, RESENT: 67 } as const

const CELLS = 68

/**
 * Counters of one thread, on shared memory. Only that thread writes them, and a 64-bit store is whole on every
 * machine we run on, so plain adds do.
 */
export function shareCounters(): Float64Array {
  return new Float64Array(new SharedArrayBuffer(CELLS * 8))
}

/** Adds `amount` to a cell. */
export function count(counters: Float64Array, cell: number, amount: number): void {
  counters[cell] = (counters[cell] ?? 0) + amount
}

/** The sum of a cell over all threads. */
export function total(threads: readonly Float64Array[], cell: number): number {
  return threads.reduce((sum, counters) => sum + (counters[cell] ?? 0), 0)
}
