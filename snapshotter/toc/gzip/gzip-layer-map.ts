import { hash } from 'node:crypto'
import type { LayerMap } from '../../blobs/layer-map.ts'
import type { ByteRange } from '../../byte-range.ts'
import { LayerError } from '../../errors.ts'
import { decodeSpan } from './decode-span.ts'
import { type SeekIndex, spanBlobRange, spanOutputRange } from './seek-index.ts'
import { parseSeekIndex, serialiseSeekIndex } from './seek-index-format.ts'

/** How a layer file is made from a tar+gzip blob: a unit is the span between two checkpoints of a seek index. */
export class GzipLayerMap implements LayerMap {
  readonly layerSize: number
  readonly blobSize: number
  readonly starts: Float64Array
  readonly #index: SeekIndex

  constructor(index: SeekIndex) {
    this.layerSize = index.layerSize
    this.blobSize = index.blobSize
    this.starts = Float64Array.from([
      ...index.spans.map((span) => span.outputOffset),
      index.layerSize,
    ])
    this.#index = index
  }

  /** Reads what `toBytes` wrote, and refers to it. Throws LayerError DATA_LOSS, or UNIMPLEMENTED for a later version. */
  static fromBytes(bytes: Uint8Array): GzipLayerMap {
    return new GzipLayerMap(parseSeekIndex(bytes))
  }

  blobRange(unit: number): ByteRange {
    return spanBlobRange(this.#index, unit)
  }

  /** Throws LayerError DATA_LOSS if blob and index do not belong together, or either is not what it was. */
  decode(unit: number, blob: Uint8Array): Uint8Array {
    const { bitOffset, window, sha256 } = this.#index.spans[unit]!
    const { start, end } = spanOutputRange(this.#index, unit)
    const decoded = this.#decoded(unit, blob, { bit: bitOffset % 8, window, length: end - start })
    if (decoded.length !== end - start) {
      throw this.#wrong(unit, `makes ${decoded.length} bytes, the index says ${end - start}`)
    }
    const digest = hash('sha256', decoded, 'buffer')
    if (!digest.equals(sha256)) {
      throw this.#wrong(
        unit,
        `has sha256 ${digest.toString('hex')}, the index says ${Buffer.from(sha256).toString('hex')}`,
      )
    }
    return decoded
  }

  toBytes(): Uint8Array {
    return serialiseSeekIndex(this.#index)
  }

  #decoded(unit: number, blob: Uint8Array, span: Parameters<typeof decodeSpan>[1]): Uint8Array {
    try {
      return decodeSpan(blob, span)
    } catch (cause) {
      throw this.#wrong(unit, 'does not decode', cause)
    }
  }

  #wrong(unit: number, what: string, cause?: unknown): LayerError {
    const { start, end } = spanOutputRange(this.#index, unit)
    return new LayerError(
      'DATA_LOSS',
      `gzip span ${unit} (bytes ${start} to ${end} of the layer) ${what}: the blob is damaged or the seek index is another layer's`,
      { unit, start, end },
      cause,
    )
  }
}
