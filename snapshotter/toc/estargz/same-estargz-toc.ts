import type { LayerToc, TocEntry } from '../layer-toc.ts'
import { sameToc } from '../same-toc.ts'
import { isEstargzOwn } from './estargz-own.ts'

/** Where the parts of a tar lie in a layer file that is arranged anew, both ascending: part i of the one is part i of the other. */
export type Arrangement = {
  readonly layerStarts: readonly number[]
  readonly tarStarts: readonly number[]
}

/**
 * Compares the table of contents that an eStargz layer was mounted by with what its tar has, as `sameToc` does. What the table
 * cannot say is left out: the entries that are there for its readers alone, and fractions of a second.
 */
export function sameEstargzToc(
  walked: LayerToc,
  mounted: LayerToc,
  arrangement: Arrangement,
): string | undefined {
  const entries = mounted.entries.map((entry) => ({
    ...entry,
    ...(entry.extents && {
      extents: entry.extents.map((extent) => ({
        ...extent,
        layerOffset: tarOffset(extent.layerOffset, arrangement),
      })),
    }),
  }))
  const seen = walked.entries.filter((entry) => !isEstargzOwn(entry)).map(inWholeSeconds)
  const { layerSize } = walked
  return sameToc({ entries: seen, layerSize }, { entries, layerSize })
}

/** As Go rounds a time to seconds. */
function inWholeSeconds(entry: TocEntry): TocEntry {
  const mtimeSec = entry.mtimeSec + (entry.mtimeNsec >= 500_000_000 ? 1 : 0)
  return { ...entry, mtimeSec, mtimeNsec: 0 }
}

function tarOffset(layerOffset: number, { layerStarts, tarStarts }: Arrangement): number {
  let [low, high] = [0, layerStarts.length - 1]
  while (low < high) {
    const middle = Math.ceil((low + high) / 2)
    if ((layerStarts[middle] ?? 0) <= layerOffset) low = middle
    else high = middle - 1
  }
  return (tarStarts[low] ?? 0) + layerOffset - (layerStarts[low] ?? 0)
}
