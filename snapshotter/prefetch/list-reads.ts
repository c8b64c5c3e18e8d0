import type { ByteRange } from '../byte-range.ts'
import type { Digest } from '../oci/digest.ts'
import type { StartReads } from '../publish/start-reads.ts'
import type { PrefetchList } from './prefetch-list.ts'

/**
 * What a list says of one layer of an image: of a layer that the list knows, what it says of that; of another, what it says of files in layers
 * that the image no longer has, by path and size.
 */
export function listReads(
  { layers, ranges }: PrefetchList,
  diffId: Digest,
  imageDiffIds: readonly Digest[],
): StartReads {
  const isKnown = layers.some((layer) => layer.diffId === diffId)
  const kept = new Set(imageDiffIds)
  const reads = new Map<string, ByteRange[]>()
  for (const { layer, path, fileSize, fileOffset, length } of ranges) {
    const listed = layers[layer]?.diffId
    if (listed === undefined || (isKnown ? listed !== diffId : kept.has(listed))) continue
    const key = fileKey({ path, size: fileSize })
    const range = { start: fileOffset, end: fileOffset + length }
    const found = reads.get(key)
    if (found === undefined) reads.set(key, [range])
    else found.push(range)
  }
  return (file) => reads.get(fileKey(file)) ?? []
}

/** A path holds no NUL, so size and path cannot run into each other. */
function fileKey({ path, size }: { readonly path: string; readonly size: number }): string {
  return `${size}\0${path}`
}
