import { TAR_BLOCK_BYTES } from '../toc/entry-limits.ts'
import type { Extent, TocEntry } from '../toc/layer-toc.ts'
import type { LayerRange } from './first-uses.ts'
import type { LayerTable } from './name-ranges.ts'
import type { ListedLayer, ListedRange, PrefetchList } from './prefetch-list.ts'

/** Where the bytes of a list lie in an image. */
export type PlacedList = {
  /** In the list's order; `layer` is a position in the image's layers. */
  readonly ranges: readonly LayerRange[]
  /** The same, named in this image. */
  readonly list: PrefetchList
  /** Ranges whose file the image does not have, or has with another size: it was changed. */
  readonly dropped: number
}

/**
 * Which layer of the image each layer of the list is: undefined if the image does not have it. The diff ID decides; one whose
 * size differs as well is a lie, and counts as not had.
 */
export function sameLayers(
  { layers }: PrefetchList,
  image: readonly ListedLayer[],
): (number | undefined)[] {
  return layers.map(({ diffId, layerSize }) => {
    const position = image.findIndex((layer) => layer.diffId === diffId)
    return image[position]?.layerSize === layerSize ? position : undefined
  })
}

/**
 * Finds the bytes of a list in an image. A layer that both have is taken as the list says; files of the other layers are looked
 * up by path, in the topmost layer that has it, and taken if they have the size that they had. `toc` is needed only of an
 * image that lacks a layer of the list.
 */
export function placeRanges(
  list: PrefetchList,
  image: readonly (ListedLayer & Partial<Pick<LayerTable, 'toc'>>)[],
): PlacedList {
  const positions = sameLayers(list, image)
  const isElsewhere = ({ layer }: ListedRange): boolean => positions[layer] === undefined
  const files = filesOf(image, new Set(list.ranges.filter(isElsewhere).map(({ path }) => path)))
  const ranges: ListedRange[] = []
  let dropped = 0
  for (const range of list.ranges) {
    const position = positions[range.layer]
    const file = files.get(range.path)
    if (position !== undefined) ranges.push({ ...range, layer: position })
    else if (file?.entry.size === range.fileSize) ranges.push(...moved(range, file))
    else dropped += 1
  }
  return {
    ranges: ranges.map((range) => wholeBlocks(range, image[range.layer]?.layerSize ?? 0)),
    list: {
      layers: image.map(({ diffId, layerSize }) => ({ diffId, layerSize })),
      ranges,
    },
    dropped,
  }
}

/** The kernel reads the last block of a file whole, and what pads it lies in the unit after, as ipdr push cuts them. */
function wholeBlocks({ layer, layerOffset, length }: ListedRange, layerSize: number): LayerRange {
  const end = Math.ceil((layerOffset + length) / TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
  return { layer, start: layerOffset, end: Math.min(end, layerSize) }
}

type FoundFile = { readonly layer: number; readonly entry: TocEntry }

/** The files of these paths as the image shows them: of the topmost layer that says anything about them. */
function filesOf(
  image: readonly Partial<Pick<LayerTable, 'toc'>>[],
  paths: ReadonlySet<string>,
): Map<string, FoundFile> {
  const files = new Map<string, FoundFile>()
  if (paths.size === 0) return files
  for (const [layer, { toc }] of image.entries()) {
    for (const entry of toc?.entries ?? []) {
      if (entry.kind === 'reg' && paths.has(entry.path)) files.set(entry.path, { layer, entry })
      else files.delete(removedBy(entry))
    }
  }
  return files
}

/** The name that an entry takes the place of: its own, or that of a whiteout (OCI image-spec, layer.md). */
function removedBy({ path }: TocEntry): string {
  const slash = path.lastIndexOf('/') + 1
  return path.startsWith('.wh.', slash) ? path.slice(0, slash) + path.slice(slash + 4) : path
}

function moved(range: ListedRange, { layer, entry }: FoundFile): ListedRange[] {
  const start = range.fileOffset
  const end = start + range.length
  return (entry.extents ?? []).flatMap((extent) => part(range, { layer, extent, start, end }))
}

function part(
  range: ListedRange,
  { layer, extent, start, end }: { layer: number; extent: Extent; start: number; end: number },
): ListedRange[] {
  const from = Math.max(start, extent.fileOffset)
  const to = Math.min(end, extent.fileOffset + extent.length)
  if (from >= to) return []
  const layerOffset = extent.layerOffset + from - extent.fileOffset
  return [{ ...range, layer, fileOffset: from, layerOffset, length: to - from }]
}
