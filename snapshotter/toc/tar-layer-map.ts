import type { LayerMap, UnitCoding } from '../blobs/layer-map.ts'
import { layerMapKind } from '../blobs/layer-map-kind.ts'
import type { ByteRange } from '../byte-range.ts'
import { LayerError } from '../errors.ts'
import { ByteReader } from './byte-reader.ts'
import { ByteWriter } from './byte-writer.ts'

/** Units of one layer, as in zstd-layer-map.ts. */
const UNITS_MAX = 4_000_000

/** The map of a layer whose blob is the uncompressed tar itself: unit i is leaf i of the UnixFS file. */
export class TarLayerMap implements LayerMap {
  readonly layerSize: number
  readonly blobSize: number
  readonly starts: Float64Array
  readonly coding: UnitCoding = 'plain'

  /**
   * `leafEnds` are the ends of the leaves in the file, ascending; the last is the size of the layer. None for an empty layer.
   * Throws LayerError INVALID_ARGUMENT if they do not ascend from above 0 or are too many.
   */
  constructor(leafEnds: Iterable<number>) {
    const starts = [0]
    let end = 0
    for (const next of leafEnds) {
      if (!Number.isSafeInteger(next) || next <= end) {
        const message = `tar layer map: a leaf ends at byte ${next}, the one before it at ${end}`
        throw new LayerError('INVALID_ARGUMENT', message)
      }
      starts.push(next)
      end = next
      if (starts.length > UNITS_MAX + 1) {
        const message = `tar layer map: the layer has more than ${UNITS_MAX} leaves`
        throw new LayerError('RESOURCE_EXHAUSTED', message)
      }
    }
    this.starts = Float64Array.from(starts)
    this.layerSize = end
    this.blobSize = end
  }

  blobRange(unit: number): ByteRange {
    const start = this.starts[unit]
    const end = this.starts[unit + 1]
    if (start === undefined || end === undefined) {
      throw new RangeError(
        `the layer has ${this.starts.length - 1} units, there is no unit ${unit}`,
      )
    }
    return { start, end }
  }

  decode(unit: number, blob: Uint8Array): Uint8Array {
    const { start, end } = this.blobRange(unit)
    if (blob.length === end - start) return blob
    const message = `unit ${unit} of the layer, bytes [${start}, ${end}): got ${blob.length} bytes`
    throw new LayerError('DATA_LOSS', message, { unit })
  }

  toBytes(): Uint8Array {
    const writer = new ByteWriter()
    writer.uint(layerMapKind.tar)
    writer.uint(this.starts.length - 1)
    for (let unit = 0; unit + 1 < this.starts.length; unit++) {
      const { start, end } = this.blobRange(unit)
      writer.uint(end - start)
    }
    return writer.written()
  }

  /** The way back from `toBytes`. Throws LayerError if the bytes are no such map. */
  static fromBytes(bytes: Uint8Array): TarLayerMap {
    const reader = new ByteReader(bytes, 'tar layer map')
    if (reader.uint() !== layerMapKind.tar) throw reader.broken('it is a map of another kind')
    const count = reader.count(UNITS_MAX, 1)
    const ends: number[] = []
    let end = 0
    for (let unit = 0; unit < count; unit++) ends.push((end += reader.uint()))
    reader.end()
    return new TarLayerMap(ends)
  }
}
