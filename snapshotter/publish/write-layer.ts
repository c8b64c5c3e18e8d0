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
import { ChunkedRecords } from './chunked-records.ts'
import { compressFrame } from './compress-frame.ts'
import { FrameThreads } from './frame-threads.ts'
import type { LayerPiece } from './layer-pieces.ts'
import { LayerPieces } from './layer-pieces.ts'
import { LeafBoundaries } from './leaf-boundaries.ts'

/** The media type of what `writeLayer` writes. OCI image-spec, layer.md. */
export const PUBLISHED_LAYER_MEDIA_TYPE = 'application/vnd.oci.image.layer.v1.tar+zstd'

/** Pieces that are being compressed, or wait for their turn in the blob, in bytes. 16 MiB: eight batches for each of four threads. */
const UNDERWAY_BYTES_MAX = 16 * 1024 * 1024

/** Pieces that a thread is given at once, in bytes. 512 KiB: 10 ms of its time, and a message for it costs a hundredth. */
const BATCH_BYTES_MIN = 512 * 1024

/** Layers up to this long are compressed on this thread, in bytes. 1 MiB: 20 ms, which is what threads take to start. */
const INLINE_BYTES_MAX = 1024 * 1024

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

  await using underway = new FramesUnderway()
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

/** Compresses pieces, several at once, and gives the frames back in order. */
class FramesUnderway implements AsyncDisposable {
  readonly #threads = new FrameThreads()
  /** Pieces in order, each with its frame, once that was asked for. */
  #queue: { piece: LayerPiece; frame: Promise<Uint8Array> | undefined }[] = []
  /** Pieces at the end of the queue that no thread was given. */
  #gathered: LayerPiece[] = []
  #gatheredBytes = 0
  #bytes = 0
  #isLong = false

  get isFull(): boolean {
    return this.#bytes > UNDERWAY_BYTES_MAX
  }

  get isEmpty(): boolean {
    return this.#queue.length === 0
  }

  add(piece: LayerPiece): void {
    this.#queue.push({ piece, frame: undefined })
    this.#gathered.push(piece)
    this.#gatheredBytes += piece.bytes.length
    this.#bytes += piece.bytes.length
    this.#isLong ||= this.#bytes > INLINE_BYTES_MAX
    if (this.#isLong && this.#gatheredBytes >= BATCH_BYTES_MIN) this.#send()
  }

  async next(): Promise<{ piece: LayerPiece; frame: Uint8Array }> {
    const [first] = this.#queue
    if (first === undefined) throw new RangeError('no frame is under way')
    if (first.frame === undefined && this.#isLong) this.#send()
    this.#queue.shift()
    const { piece } = first
    const frame = (await first.frame) ?? compressFrame(piece.bytes)
    this.#bytes -= piece.bytes.length
    return { piece, frame }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#threads[Symbol.asyncDispose]()
  }

  #send(): void {
    const pieces = this.#gathered
    this.#gathered = []
    this.#gatheredBytes = 0
    const frames = this.#threads.compress(pieces.map(({ bytes }) => bytes))
    for (const [position, entry] of this.#queue.slice(-pieces.length).entries()) {
      entry.frame = frames.then((all) => all[position] ?? new Uint8Array())
      // A failure is thrown where the frame is awaited, which may be later than Node allows.
      entry.frame.catch(() => undefined)
    }
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
