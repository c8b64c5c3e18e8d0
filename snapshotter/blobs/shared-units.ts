import type { ByteRange } from '../byte-range.ts'

/**
 * What threads share about one layer file: where its units are and which are on disk. The arrays lie on shared
 * memory, so a thread that serves page faults sees each change of the main thread, which alone makes them, at once.
 */
export type SharedUnits = {
  /** The sparse file that holds the bytes of the units that are present. */
  readonly dataPath: string
  /** As `LayerMap.starts`: unit i is bytes [starts[i], starts[i + 1]) of the layer file. */
  readonly starts: Float64Array
  /** One bit a unit, lowest first: set once its bytes can be read from the file, and were written or checked by this process. */
  readonly present: Int32Array
  /** When a unit was last read, in seconds since the epoch; by any thread, and roughly. 0: not since the start. */
  readonly lastUse: Uint32Array
  /**
   * [0]: how often units were taken away. It rises after their bits are cleared and before their bytes go, so bytes
   * read while it stood still, under bits seen set after it was looked at, are the layer's.
   */
  readonly evictions: Int32Array
}

/** Makes the shared memory of a layer file of which no unit is present yet. */
export function shareUnits(dataPath: string, starts: Float64Array): SharedUnits {
  const units = unitCount(starts)
  const shared = new Float64Array(new SharedArrayBuffer(starts.byteLength))
  shared.set(starts)
  return {
    dataPath,
    starts: shared,
    present: new Int32Array(new SharedArrayBuffer(Math.ceil(units / 32) * 4)),
    lastUse: new Uint32Array(new SharedArrayBuffer(units * 4)),
    evictions: new Int32Array(new SharedArrayBuffer(4)),
  }
}

/** How many units these starts bound. */
export function unitCount(starts: Float64Array): number {
  return Math.max(0, starts.length - 1)
}

/** Where unit `unit` lies in the layer file. */
export function unitRange({ starts }: { starts: Float64Array }, unit: number): ByteRange {
  return { start: starts[unit] ?? 0, end: starts[unit + 1] ?? 0 }
}

/** The unit that holds the byte at `offset`, which must be inside the layer file. Units that are empty hold none. */
export function unitAt({ starts }: { starts: Float64Array }, offset: number): number {
  let [low, high] = [0, starts.length - 1]
  while (high - low > 1) {
    const middle = (low + high) >>> 1
    if ((starts[middle] ?? 0) <= offset) low = middle
    else high = middle
  }
  return low
}

/** Whether the bytes of `unit` are on disk. */
export function isPresent({ present }: Pick<SharedUnits, 'present'>, unit: number): boolean {
  return (Atomics.load(present, unit >>> 5) & (1 << (unit & 31))) !== 0
}

/** Says that the bytes of `unit` are on disk. Main thread only. */
export function setPresent({ present }: Pick<SharedUnits, 'present'>, unit: number): void {
  Atomics.or(present, unit >>> 5, 1 << (unit & 31))
}

/** Says that the bytes of `unit` are about to go. Main thread only; `evictions` has to rise before they do. */
export function clearPresent({ present }: Pick<SharedUnits, 'present'>, unit: number): void {
  Atomics.and(present, unit >>> 5, ~(1 << (unit & 31)))
}

/** Whether all bytes of `range`, which is not empty, are on disk. If so, notes that they were used at `nowSec`. */
export function useIfPresent(units: SharedUnits, range: ByteRange, nowSec: number): boolean {
  const first = unitAt(units, range.start)
  const last = unitAt(units, range.end - 1)
  for (let unit = first; unit <= last; unit++) if (!isPresent(units, unit)) return false
  units.lastUse.fill(nowSec, first, last + 1)
  return true
}
