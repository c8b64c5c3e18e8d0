import type { LazyLayer } from '../blobs/lazy-layer.ts'
import { unitRange } from '../blobs/shared-units.ts'

/** Units watched for their first use. 65,536 of 100 bytes are 6.5 MB; at 256 KiB a unit they are 16 GiB of prefetching. */
const WATCHED_MAX = 65_536

type Watched = {
  readonly layer: LazyLayer
  readonly unit: number
  readonly keptSec: number
  readonly bytes: number
}

/** How much of what was prefetched was read later: what a list is worth. */
export class PrefetchedUnits {
  #unused: Watched[] = []
  #fetchedBytes = 0
  #usedBytes = 0

  /** Counts a unit that a prefetch has just brought. */
  add(layer: LazyLayer, unit: number): void {
    const { start, end } = unitRange(layer.file.units, unit)
    const bytes = end - start
    this.#fetchedBytes += bytes
    this.#unused.push({ layer, unit, bytes, keptSec: layer.file.lastUseSec(unit) })
    // In batches, so that each unit costs no copy of all.
    if (this.#unused.length > WATCHED_MAX * 1.25) this.#unused.splice(0, WATCHED_MAX / 4)
  }

  /** Bytes of layer files since the start: brought, and of those read since. */
  counters(): { fetchedBytes: number; usedBytes: number } {
    this.#unused = this.#unused.filter(({ layer, unit, keptSec, bytes }) => {
      if (layer.file.lastUseSec(unit) <= keptSec) return true
      this.#usedBytes += bytes
      return false
    })
    return { fetchedBytes: this.#fetchedBytes, usedBytes: this.#usedBytes }
  }
}
