import type { LazyLayer } from '../blobs/lazy-layer.ts'
import { unitAt, unitRange } from '../blobs/shared-units.ts'
import type { LayerRange } from './first-uses.ts'

/**
 * Units asked for at once. 12: as many places as the queue has for prefetching. Two images that start at once take turns in it,
 * unit by unit.
 */
const UNITS_AT_ONCE = 12

/** Bytes of layer files that one replay fetches. 1 GiB: 4 s at 250 MB/s; a start that reads more is better pulled whole. */
export const REPLAY_BYTES_MAX: number = 1024 ** 3

/** Units in a row that cannot be had, after which the rest is left. 24: two rounds, so one unit that is lost ends nothing. */
const FAILURES_MAX = 24

/** What a replay did. */
export type Replayed = {
  readonly units: number
  readonly bytes: number
  readonly failed: number
  /** Why the first that failed did. */
  readonly reason: unknown
}

/** Layers that ranges lie in, by the range's `layer`. */
export type HeldLayers = ReadonlyMap<number, LazyLayer>

/** Bytes of layer files that replays, which share it, may still fetch. */
export type ReplayBudget = { bytesLeft: number }

/**
 * Fetches the units of `ranges` that are not here, in their order, behind every page fault. Never rejects: whoever reads a
 * unit that failed asks for it again. Ends early when `signal` aborts, where the budget ends, or if nothing can be had any more.
 */
export async function replayRanges(
  ranges: readonly LayerRange[],
  {
    layers,
    budget,
    signal,
    onUnit,
  }: {
    readonly layers: HeldLayers
    readonly budget: ReplayBudget
    readonly signal: AbortSignal
    /** Told of each unit that this replay brought. */
    readonly onUnit: (layer: LazyLayer, unit: number) => void
  },
): Promise<Replayed> {
  const listed = unitsOf(ranges, layers)
  using expected = new DisposableStack()
  for (const [layer, ofIt] of Map.groupBy(listed, ({ layer }) => layer)) {
    expected.use(layer.expect(new Set(ofIt.map(({ unit }) => unit))))
  }
  // Looked at when its turn comes: somebody may have read it meanwhile.
  const missing = listed.values().filter(({ layer, unit }) => !layer.file.has(unit))
  let [units, bytes, failed, failedInRow] = [0, 0, 0, 0]
  let reason: unknown
  const work = async (): Promise<void> => {
    for (const { layer, unit } of missing) {
      const { start, end } = unitRange(layer.file.units, unit)
      if (signal.aborted || failedInRow >= FAILURES_MAX || end - start > budget.bytesLeft) return
      budget.bytesLeft -= end - start
      try {
        await layer.fill(unit, { priority: 'prefetch', signal })
        units += 1
        bytes += end - start
        failedInRow = 0
        onUnit(layer, unit)
      } catch (error) {
        budget.bytesLeft += end - start
        if (signal.aborted) return
        reason ??= error
        failed += 1
        failedInRow += 1
      }
    }
  }
  // One sequence for all: each takes the next unit when it has finished one.
  await Promise.all(Array.from({ length: UNITS_AT_ONCE }, work))
  return { units, bytes, failed, reason }
}

/** The units of the ranges in order of first mention, each once. */
function unitsOf(
  ranges: readonly LayerRange[],
  layers: HeldLayers,
): { readonly layer: LazyLayer; readonly unit: number }[] {
  const found: { layer: LazyLayer; unit: number }[] = []
  const seen = new Map<number, Set<number>>()
  for (const range of ranges) {
    const layer = layers.get(range.layer)
    // What a list says is checked where it is used too: unitAt wants a byte that is inside.
    if (layer === undefined || range.end > layer.file.map.layerSize) continue
    let units = seen.get(range.layer)
    if (units === undefined) seen.set(range.layer, (units = new Set()))
    const last = unitAt(layer.file.units, range.end - 1)
    for (let unit = unitAt(layer.file.units, range.start); unit <= last; unit++) {
      if (units.has(unit)) continue
      units.add(unit)
      found.push({ layer, unit })
    }
  }
  return found
}
