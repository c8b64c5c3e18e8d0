import { createHash, type Hash } from 'node:crypto'
import { zstdCompressSync } from 'node:zlib'
import { LayerError } from '../../errors.ts'
import type { GzipCheckpoint, GzipEnd } from './gzip-stream.ts'
import { type SeekIndex, type SeekSpan, spanProblem } from './seek-index.ts'
import { HEADER_BYTES, RECORD_BYTES } from './seek-index-format.ts'

/** Output between two checkpoints, in bytes. 4 MiB decode in about 12 ms; a window of 13 KiB is 0.9 % of what they come from. */
export const CHECKPOINT_BYTES: number = 4 * 1024 * 1024

/** What the index may add to the blob. Where windows cost more, checkpoints move apart: up to 8 times `checkpointBytes`. */
const INDEX_SHARE_MAX = 0.015
const STRETCH_MAX = 8

/** A checkpoint that is too dear is tried again after this part of `checkpointBytes`: not every block costs a compression. */
const RETRY_PART = 1 / 8

type OpenSpan = Omit<SeekSpan, 'sha256'>

/** Chooses checkpoints while a blob is decoded. Give it each checkpoint and all output, in the order they come. */
export class SeekIndexBuilder {
  readonly #checkpointBytes: number
  readonly #spans: SeekSpan[] = []
  #open: OpenSpan | undefined
  #sha256: Hash = createHash('sha256')
  #indexBytes = HEADER_BYTES
  #nextTry = 0

  constructor({ checkpointBytes }: { checkpointBytes: number }) {
    this.#checkpointBytes = checkpointBytes
  }

  addOutput(bytes: Uint8Array): void {
    this.#sha256.update(bytes)
  }

  addCheckpoint({ outputOffset, bitOffset, window }: GzipCheckpoint): void {
    // An empty window is the first block of a member: the start of the member was a cheaper checkpoint.
    if (outputOffset < this.#nextTry || window?.length === 0) return
    const span = { outputOffset, bitOffset, window: window && zstdCompressSync(window) }
    const indexBytes = this.#indexBytes + RECORD_BYTES + (span.window?.length ?? 0)
    if (this.#open !== undefined) {
      const stretch = (outputOffset - this.#open.outputOffset) / this.#checkpointBytes
      if (indexBytes > (bitOffset / 8) * INDEX_SHARE_MAX && stretch < STRETCH_MAX) {
        this.#nextTry = outputOffset + this.#checkpointBytes * RETRY_PART
        return
      }
      this.#close(this.#open)
    }
    this.#open = span
    this.#indexBytes = indexBytes
    this.#nextTry = outputOffset + this.#checkpointBytes
  }

  /** The index. Throws LayerError RESOURCE_EXHAUSTED if a block was so long, or so much of it empty, that a span is too big. */
  finish({ blobSize, dataEnd, outputSize }: GzipEnd): SeekIndex {
    // Members without output may follow the last checkpoint: then they belong to the span before it.
    if (this.#open !== undefined && this.#open.outputOffset < outputSize) this.#close(this.#open)
    const index = { blobSize, dataEnd, layerSize: outputSize, spans: this.#spans }
    const problem = spanProblem(index)
    if (problem !== undefined) {
      throw new LayerError('RESOURCE_EXHAUSTED', `gzip blob cannot be indexed: ${problem}`, {
        blobSize,
        layerSize: outputSize,
      })
    }
    return index
  }

  #close(span: OpenSpan): void {
    this.#spans.push({ ...span, sha256: this.#sha256.digest() })
    this.#sha256 = createHash('sha256')
  }
}
