import type { Extent } from '../toc/layer-toc.ts'
import type { FileNode } from '../toc/layer-tree.ts'
import { BLOCK_BYTES, CHUNK_BITS_MAX } from './format.ts'

/** How the kernel finds a file's content. */
export type FileBlocks =
  | { readonly kind: 'empty' }
  /** One run of the layer file from `layerOffset` on, of a page at most. */
  | { readonly kind: 'run'; readonly layer: number; readonly layerOffset: number }
  /** Chunks of 512 << `chunkBits` bytes, each one run of the layer file or a hole. */
  | {
      readonly kind: 'chunks'
      readonly layer: number
      readonly chunkBits: number
      readonly count: number
      readonly extents: readonly Extent[]
    }
  /** Blocks of the layer file do not make up the file: its bytes have to be copied into the image. */
  | { readonly kind: 'inlined' }

/**
 * Bytes up to which a file is a run without a chunk index, 8 bytes less of metadata. One page: the kernel (6.18,
 * fs/erofs/fileio.c) finds the device of a run through the address space that all devices share, and then takes no two
 * pages for neighbours, so each page of it is read by a request of its own. Of chunks, which name their device, 16 are.
 */
const RUN_BYTES_MAX = 4096

/** Finds how `file` maps to blocks of its layer. */
export function fileBlocks(file: FileNode): FileBlocks {
  if (file.size === 0) return { kind: 'empty' }
  const extents = file.extents.length > 1 ? joined(file.extents) : file.extents
  const [first] = extents
  if (extents.some((extent) => !isBlockAligned(extent, file.size))) return { kind: 'inlined' }
  const isOneRun = first !== undefined && first.fileOffset === 0 && first.length === file.size
  if (isOneRun && file.size <= RUN_BYTES_MAX) {
    return { kind: 'run', layer: file.layer, layerOffset: first.layerOffset }
  }
  const chunkBits = largestChunkBits(extents, file.size)
  const count = Math.ceil(file.size / chunkBytes(chunkBits))
  return { kind: 'chunks', layer: file.layer, chunkBits, count, extents }
}

/** Bytes of a chunk; a number, not a shift: 2^40 does not fit 32 bits. */
export function chunkBytes(chunkBits: number): number {
  return BLOCK_BYTES * 2 ** chunkBits
}

/**
 * Whether blocks of the layer can stand for the extent: both ends of the mapping on block boundaries. The last block of
 * a file may be cut short, for what follows it is not read; before a hole it may not, for there it would be read.
 */
function isBlockAligned({ fileOffset, layerOffset, length }: Extent, fileSize: number): boolean {
  return (
    fileOffset % BLOCK_BYTES === 0 &&
    layerOffset % BLOCK_BYTES === 0 &&
    (length % BLOCK_BYTES === 0 || fileOffset + length === fileSize)
  )
}

/** The largest chunks at whose boundaries all extents start and end, so that each chunk is one run or all hole. */
function largestChunkBits(extents: readonly Extent[], fileSize: number): number {
  let bits = 0
  while (bits < CHUNK_BITS_MAX && chunkBytes(bits) < fileSize) {
    const next = chunkBytes(bits + 1)
    const isWithin = (at: number): boolean => at < fileSize && at % next !== 0
    const isCut = extents.some(
      ({ fileOffset, length }) => isWithin(fileOffset) || isWithin(fileOffset + length),
    )
    if (isCut) break
    bits++
  }
  return bits
}

/** The extents without empty ones, and with those joined that continue each other in the file and in the layer. */
function joined(extents: readonly Extent[]): Extent[] {
  const result: Extent[] = []
  for (const extent of extents) {
    if (extent.length === 0) continue
    const last = result.at(-1)
    const continues =
      last !== undefined &&
      last.fileOffset + last.length === extent.fileOffset &&
      last.layerOffset + last.length === extent.layerOffset
    if (continues) result[result.length - 1] = { ...last, length: last.length + extent.length }
    else result.push(extent)
  }
  return result
}
