import { GzipLayerMap } from './gzip-layer-map.ts'
import { GzipStream } from './gzip-stream.ts'
import { CHECKPOINT_BYTES, SeekIndexBuilder } from './seek-index-builder.ts'

export type GzipIndexerOptions = {
  /** Bytes of output after which the blob is refused: the bound on a decompression bomb. */
  readonly outputBytesMax: number
  /** Output between two checkpoints, in bytes. */
  readonly checkpointBytes?: number
}

/**
 * Reads a gzip layer that nobody indexed, once: hands out the layer file's bytes and makes the map on the way.
 *
 * ```ts
 * for await (const chunk of blob) for (const bytes of indexer.push(chunk)) await file.write(bytes)
 * const map = indexer.finish()
 * ```
 */
export class GzipIndexer {
  readonly #stream: GzipStream
  readonly #builder: SeekIndexBuilder

  constructor({ outputBytesMax, checkpointBytes = CHECKPOINT_BYTES }: GzipIndexerOptions) {
    const builder = new SeekIndexBuilder({ checkpointBytes })
    this.#builder = builder
    this.#stream = new GzipStream({
      outputBytesMax,
      onCheckpoint: (checkpoint) => {
        builder.addCheckpoint(checkpoint)
      },
    })
  }

  /**
   * Decodes the next `chunk` of the blob, of any size, and yields the bytes it makes, at most 161 KiB at once; each view is
   * valid until the next step. Run it to its end. A member's CRC is checked at its end, after its bytes were handed out.
   * Throws LayerError: DATA_LOSS with the place where the blob is not gzip, RESOURCE_EXHAUSTED if its output is too long.
   */
  *push(chunk: Uint8Array): Generator<Uint8Array, void> {
    for (const bytes of this.#stream.push(chunk)) {
      this.#builder.addOutput(bytes)
      yield bytes
    }
  }

  /**
   * The map of the layer, once all chunks are in. Throws LayerError: DATA_LOSS if the blob is cut short,
   * RESOURCE_EXHAUSTED if a deflate block is too long to be decoded alone.
   */
  finish(): GzipLayerMap {
    return new GzipLayerMap(this.#builder.finish(this.#stream.finish()))
  }
}
