import { createHash } from 'node:crypto'
import { LayerError } from '../errors.ts'
import {
  encodeLayerIndex,
  LAYER_INDEX_ANNOTATION,
  LAYER_INDEX_FRAME_VARIANT,
  layerIndexPosition,
} from '../toc/layer-index.ts'
import type { LayerToc } from '../toc/layer-toc.ts'
import { skippableFrame } from '../toc/zstd-frames.ts'
import type { ZstdUnit } from '../toc/zstd-layer-map.ts'
import { ZstdLayerMap } from '../toc/zstd-layer-map.ts'
import { BridgedFrames, type UsedFrame } from './bridged-frames.ts'
import { ChunkedRecords } from './chunked-records.ts'
import { CompactGroups } from './compact-groups.ts'
import { FramesUnderway, type PlacedFrame } from './frames-underway.ts'
import type { LayerPiece } from './layer-pieces.ts'
import { LayerPieces } from './layer-pieces.ts'
import type { LeafFrame } from './leaf-boundaries.ts'
import { LeafBoundaries } from './leaf-boundaries.ts'
import type { StartReads } from './start-reads.ts'

/** The media type of what `writeLayer` writes. OCI image-spec, layer.md. */
export const PUBLISHED_LAYER_MEDIA_TYPE = 'application/vnd.oci.image.layer.v1.tar+zstd'

/** A leaf of what follows the layer's frames, in bytes. 512 KiB, as the largest leaf of small files. */
const TABLE_LEAF_BYTES = 512 * 1024

/** A layer as published. */
export type WrittenLayer = {
  /** SHA-256 of the tar, as an image config lists it. */
  readonly diffId: string
  /** SHA-256 of the blob. */
  readonly digest: string
  /** Bytes of the blob. */
  readonly size: number
  /** For the layer's descriptor. */
  readonly annotations: Readonly<Record<string, string>>
  readonly toc: LayerToc
  readonly map: ZstdLayerMap
  /** Why podman, CRI-O and stargz-snapshotter must read the layer whole; undefined if they need not. */
  readonly chunkedObstacle: string | undefined
}

/** How a layer is written. */
export type WriteLayerOptions = {
  readonly signal: AbortSignal
  /** Files together in frames of some 4 MiB, where they compress best, instead of each in one of its own. */
  readonly compact?: boolean
  /** What starts of the image read: it gets leaves of its own, so that nothing else is fetched with it. */
  readonly startReads?: StartReads | undefined
}

/**
 * Writes a layer in the format of README.md: yields the blob leaf by leaf, each to be one IPFS block, and returns the rest.
 * Memory is bounded by what is under way (FramesUnderway), a leaf, and the table of contents. Throws LayerError as TarStreamWalk
 * does, and CANCELLED; passes on what `tar` throws.
 */
export async function* writeLayer(
  tar: AsyncIterable<Uint8Array>,
  { signal, compact = false, startReads }: WriteLayerOptions,
): AsyncGenerator<Uint8Array, WrittenLayer> {
  const records = new ChunkedRecords()
  if (compact) records.giveUp('its files share frames (--compact)')
  const pieces = new LayerPieces((passed) => records.pass(passed), startReads)
  const blob = new BlobLeaves()
  const tarHash = createHash('sha256')
  const boundaries = new LeafBoundaries()
  const bridged = new BridgedFrames()
  const compactGroups = new CompactGroups()
  const units: ZstdUnit[] = []
  const unit = { blobBytes: 0, layerBytes: 0 }

  function* endUnit(): Generator<Uint8Array, void> {
    if (unit.blobBytes === 0) return
    units.push({ ...unit })
    unit.blobBytes = 0
    unit.layerBytes = 0
    yield blob.endLeaf()
  }
  function append({ pieces, bytes }: PlacedFrame): void {
    const start = blob.size
    blob.append(bytes)
    unit.blobBytes += bytes.length
    for (const { bytes, content } of pieces) {
      unit.layerBytes += bytes.length
      if (content === undefined) continue
      const { member, fileOffset, sha256 } = content
      const chunk = { start, end: blob.size, fileOffset, size: bytes.length, sha256 }
      records.chunk(member, chunk)
    }
  }
  function* place(frames: readonly UsedFrame[]): Generator<Uint8Array, void> {
    for (const frame of frames) {
      const { endsBefore, endsAfter } = compact
        ? { endsBefore: false, endsAfter: true }
        : boundaries.place(leafFrame(frame))
      if (endsBefore) yield* endUnit()
      append(frame)
      if (endsAfter) yield* endUnit()
    }
  }
  async function* placeNext(): AsyncGenerator<Uint8Array, void> {
    for (const frame of await underway.next()) {
      yield* place(bridged.push({ ...frame, isRead: frame.pieces.at(-1)?.content?.isRead }))
    }
  }
  function* groupsOf(piece: LayerPiece): Generator<readonly LayerPiece[], void> {
    if (compact) yield* compactGroups.push(piece)
    else yield [piece]
  }

  await using underway = new FramesUnderway()
  for await (const bytes of tar) {
    if (signal.aborted) throw new LayerError('CANCELLED', 'writing the layer was cancelled')
    tarHash.update(bytes)
    for (const piece of pieces.push(bytes)) {
      for (const group of groupsOf(piece)) underway.add(group)
      while (underway.isFull) yield* placeNext()
    }
  }
  const { pieces: last, toc, trailer } = pieces.end()
  for (const piece of last) for (const group of groupsOf(piece)) underway.add(group)
  for (const group of compactGroups.end()) underway.add(group)
  while (!underway.isEmpty) yield* placeNext()
  yield* place(bridged.end())
  yield* endUnit()

  // The blob's size is not in the index, which is part of the blob.
  const index = encodeLayerIndex(toc, new ZstdLayerMap(units, Number.MAX_SAFE_INTEGER))
  const indexFrame = skippableFrame(index, LAYER_INDEX_FRAME_VARIANT)
  const indexPosition = layerIndexPosition(index, blob.size + indexFrame.length - index.length)
  yield* blob.appendLeaves(indexFrame)
  const chunked = records.finish(trailer, blob.size)
  if (chunked !== undefined) yield* blob.appendLeaves(chunked.bytes)
  return {
    diffId: `sha256:${tarHash.digest('hex')}`,
    digest: blob.digest(),
    size: blob.size,
    annotations: { ...chunked?.annotations, [LAYER_INDEX_ANNOTATION]: indexPosition },
    toc,
    map: new ZstdLayerMap(units, blob.size),
    chunkedObstacle: records.obstacle,
  }
}

/** What decides where a leaf ends, of a frame with one piece. */
function leafFrame({ pieces, bytes, isRead }: UsedFrame): LeafFrame {
  const layerBytes = pieces.reduce((sum, piece) => sum + piece.bytes.length, 0)
  const contentDigest = pieces.at(-1)?.content?.sha256
  return {
    blobBytes: bytes.length,
    layerBytes,
    ...(contentDigest === undefined ? {} : { contentDigest }),
    ...(isRead === undefined ? {} : { isRead }),
  }
}

/** The blob as it grows: its size, digest and the leaf that is being filled. */
class BlobLeaves {
  readonly #hash = createHash('sha256')
  #leaf: Uint8Array[] = []
  /** Bytes of the blob so far. */
  size = 0

  append(bytes: Uint8Array): void {
    this.#leaf.push(bytes)
    this.size += bytes.length
  }

  endLeaf(): Uint8Array {
    const leaf = Buffer.concat(this.#leaf)
    this.#leaf = []
    this.#hash.update(leaf)
    return leaf
  }

  *appendLeaves(bytes: Uint8Array): Generator<Uint8Array, void> {
    for (let start = 0; start < bytes.length; start += TABLE_LEAF_BYTES) {
      this.append(bytes.subarray(start, start + TABLE_LEAF_BYTES))
      yield this.endLeaf()
    }
  }

  digest(): string {
    return `sha256:${this.#hash.digest('hex')}`
  }
}
