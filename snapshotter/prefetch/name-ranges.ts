import type { Extent, LayerToc } from '../toc/layer-toc.ts'
import type { LayerRange } from './first-uses.ts'
import type { ListedLayer, ListedRange, PrefetchList } from './prefetch-list.ts'

/** A layer that ranges are to be named in, or found in. */
export type LayerTable = ListedLayer & { readonly toc: LayerToc }

type Placed = Extent & { readonly path: string; readonly fileSize: number }

/**
 * Says which bytes of which files these ranges are; `layer` of a range is a position in `layers`. Bytes between files, such
 * as tar headers and padding, are left out.
 */
export function nameRanges(
  layers: readonly LayerTable[],
  ranges: readonly LayerRange[],
): PrefetchList {
  const contents = layers.map(({ toc }) => contentsOf(toc))
  return {
    layers: layers.map(({ diffId, layerSize }) => ({ diffId, layerSize })),
    ranges: ranges.flatMap((range) => named(range, contents[range.layer] ?? [])),
  }
}

/** Contents of a layer in the order in which they lie in it; a hard link's belong to the name that the tar gives them. */
function contentsOf({ entries }: LayerToc): Placed[] {
  return entries
    .flatMap(({ path, size, extents = [] }) =>
      extents.map((extent) => ({ ...extent, path, fileSize: size })),
    )
    .toSorted((a, b) => a.layerOffset - b.layerOffset)
}

function named({ layer, start, end }: LayerRange, contents: readonly Placed[]): ListedRange[] {
  const found: ListedRange[] = []
  for (let index = firstEndingAfter(contents, start); ; index++) {
    const content = contents[index]
    if (content === undefined || content.layerOffset >= end) return found
    const from = Math.max(start, content.layerOffset)
    const to = Math.min(end, content.layerOffset + content.length)
    found.push({
      layer,
      path: content.path,
      fileSize: content.fileSize,
      fileOffset: content.fileOffset + from - content.layerOffset,
      layerOffset: from,
      length: to - from,
    })
  }
}

function firstEndingAfter(contents: readonly Placed[], offset: number): number {
  let [low, high] = [0, contents.length]
  while (low < high) {
    const middle = (low + high) >>> 1
    const content = contents[middle]
    if (content !== undefined && content.layerOffset + content.length <= offset) low = middle + 1
    else high = middle
  }
  return low
}
