import { createHash } from 'node:crypto'
import { promisify } from 'node:util'
import zlib from 'node:zlib'
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
import { ChunkedRecords } from './chunked-records.ts'
import type { LayerPiece } from './layer-pieces.ts'
import { LayerPieces } from './layer-pieces.ts'
import { LeafBoundaries } from './leaf-boundaries.ts'

/** The media type of what `writeLayer` writes. OCI image-spec, layer.md. */
export const PUBLISHED_LAYER_MEDIA_TYPE = 'application/vnd.oci.image.layer.v1.tar+zstd'

/**
 * The zstd level of every frame, fixed because it decides the bytes and so the CIDs: the same tar makes the same blob as long as
 * Node brings the same zstd (1.5.7 in Node 24). Level 9 is the last that costs little: 6 % smaller than 3 for 1.8 times the CPU
 * time, 1 % smaller than 6 for 1.3 times; 12 saves 1 % more for 1.7 times.
 */
const ZSTD_LEVEL = 9

/** Pieces up to this long are compressed on this thread, in bytes. 16 KiB: 0.1 ms, about what a thread's turn costs. */
const INLINE_BYTES_MAX = 16 * 1024

/** Pieces that are being compressed, or wait for their turn in the blob, in bytes. 8 MiB: eight long chunks, for four threads. */
const UNDERWAY_BYTES_MAX = 8 * 1024 * 1024

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

/**
 * Writes a layer in the format of README.md: yields the blob leaf by leaf, each to be one IPFS block, and returns the rest.
 * Memory is bounded by `UNDERWAY_BYTES_MAX`, a leaf, and the table of contents. Throws LayerError as TarStreamWalk does, and
 * CANCELLED; passes on what `tar` throws.
 */
export async function* writeLayer(
  tar: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array, WrittenLayer> {
  const records = new ChunkedRecords()
  const pieces = new LayerPieces((passed) => records.pass(passed))
  const blob = new BlobLeaves()
  const tarHash = createHash('sha256')
  const boundaries = new LeafBoundaries()
  const units: ZstdUnit[] = []
  const unit = { blobBytes: 0, layerBytes: 0 }

  function* endUnit(): Generator<Uint8Array, void> {
    if (unit.blobBytes === 0) return
    units.push({ ...unit })
    unit.blobBytes = 0
    unit.layerBytes = 0
    yield blob.endLeaf()
  }
  function* place(piece: LayerPiece, frame: Uint8Array): Generator<Uint8Array, void> {
    const { bytes, content } = piece
    const { endsBefore, endsAfter } = boundaries.place({
      blobBytes: frame.length,
      layerBytes: bytes.length,
      ...(content === undefined ? {} : { contentDigest: content.sha256 }),
    })
    if (endsBefore) yield* endUnit()
    const start = blob.size
    blob.append(frame)
    unit.blobBytes += frame.length
    unit.layerBytes += bytes.length
    if (content !== undefined) {
      const { member, fileOffset, sha256 } = content
      const chunk = { start, end: blob.size, fileOffset, size: bytes.length, sha256 }
      records.chunk(member, chunk)
    }
    if (endsAfter) yield* endUnit()
  }

  const underway = new FramesUnderway()
  for await (const bytes of tar) {
    if (signal.aborted) throw new LayerError('CANCELLED', 'writing the layer was cancelled')
    tarHash.update(bytes)
    for (const piece of pieces.push(bytes)) {
      underway.add(piece)
      while (underway.isFull) {
        const { piece, frame } = await underway.next()
        yield* place(piece, frame)
      }
    }
  }
  const { pieces: last, toc, trailer } = pieces.end()
  for (const piece of last) underway.add(piece)
  while (!underway.isEmpty) {
    const { piece, frame } = await underway.next()
    yield* place(piece, frame)
  }
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

/** Compresses pieces on libuv's threads, several at once, and gives the frames back in order. */
class FramesUnderway {
  #queue: { piece: LayerPiece; frame: Uint8Array | Promise<Uint8Array> }[] = []
  #bytes = 0

  get isFull(): boolean {
    return this.#bytes > UNDERWAY_BYTES_MAX
  }

  get isEmpty(): boolean {
    return this.#queue.length === 0
  }

  add(piece: LayerPiece): void {
    const frame = compress(piece.bytes)
    // A failure is thrown where the frame is awaited, which may be later than Node allows.
    if (frame instanceof Promise) frame.catch(() => {})
    this.#queue.push({ piece, frame })
    this.#bytes += piece.bytes.length
  }

  async next(): Promise<{ piece: LayerPiece; frame: Uint8Array }> {
    const first = this.#queue.shift()
    if (first === undefined) throw new RangeError('no frame is under way')
    this.#bytes -= first.piece.bytes.length
    return { piece: first.piece, frame: await first.frame }
  }
}

const zstdCompress = promisify(
  (bytes: Uint8Array, done: (error: Error | null, frame: Buffer) => void): void =>
    zlib.zstdCompress(bytes, zstdOptions(bytes), done),
)

function zstdOptions(bytes: Uint8Array): zlib.ZstdOptions {
  return {
    params: { [zlib.constants.ZSTD_c_compressionLevel]: ZSTD_LEVEL },
    // Else only the synchronous call writes the size into the frame, which readers need.
    pledgedSrcSize: bytes.length,
    // Room for the whole frame (zstd's own bound, ZSTD_COMPRESSBOUND): else Node hands out 16 KiB at a time.
    chunkSize: bytes.length + (bytes.length >> 8) + 128,
  }
}

function compress(bytes: Uint8Array): Uint8Array | Promise<Uint8Array> {
  return bytes.length <= INLINE_BYTES_MAX
    ? zlib.zstdCompressSync(bytes, zstdOptions(bytes))
    : zstdCompress(bytes)
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
