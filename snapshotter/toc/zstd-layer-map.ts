import type { LayerMap, UnitCoding } from '../blobs/layer-map.ts'
import { layerMapKind } from '../blobs/layer-map-kind.ts'
import type { ByteRange } from '../byte-range.ts'
import { LayerError } from '../errors.ts'
import { ByteReader } from './byte-reader.ts'
import { ByteWriter } from './byte-writer.ts'
import { decodeZstdInto } from './zstd-frames.ts'

/** One IPFS leaf of a published layer: whole zstd frames. */
export type ZstdUnit = {
  /** Bytes in the blob, compressed. */
  readonly blobBytes: number
  /** Bytes in the layer file, decompressed. */
  readonly layerBytes: number
}

/** Units of one layer. 4,000,000: a 1 TiB layer in units of 256 KiB; 64 MB as two arrays. */
export const UNITS_MAX = 4_000_000

/** A unit in the blob, in bytes. 2 MiB: the largest block that bitswap carries. */
export const UNIT_BLOB_BYTES_MAX: number = 2 * 1024 * 1024

/** A unit in the layer file, in bytes. 8 MiB: four times what `ipdr push` writes, still decoded in some 10 ms. */
export const UNIT_LAYER_BYTES_MAX: number = 8 * 1024 * 1024

/** The map of a layer that `ipdr push` wrote: unit i is leaf i of the blob, made of independent zstd frames. */
export class ZstdLayerMap implements LayerMap {
  readonly layerSize: number
  readonly blobSize: number
  readonly starts: Float64Array
  readonly coding: UnitCoding = 'zstd'
  /** As `starts`, in the blob; what follows the last is the index and the zstd:chunked table of contents. */
  readonly #blobStarts: Float64Array

  /** Throws LayerError INVALID_ARGUMENT if a unit is empty or beyond its limit, or they do not fit in `blobSize`. */
  constructor(units: readonly ZstdUnit[], blobSize: number) {
    if (units.length > UNITS_MAX)
      throw refused(`has ${units.length} units, the limit is ${UNITS_MAX}`)
    this.starts = new Float64Array(units.length + 1)
    this.#blobStarts = new Float64Array(units.length + 1)
    let layerEnd = 0
    let blobEnd = 0
    for (const [unit, { blobBytes, layerBytes }] of units.entries()) {
      if (
        !isWithin(blobBytes, UNIT_BLOB_BYTES_MAX) ||
        !isWithin(layerBytes, UNIT_LAYER_BYTES_MAX)
      ) {
        throw refused(`unit ${unit} has ${blobBytes} bytes that decode to ${layerBytes}`)
      }
      this.starts[unit + 1] = layerEnd += layerBytes
      this.#blobStarts[unit + 1] = blobEnd += blobBytes
    }
    if (blobEnd > blobSize)
      throw refused(`its units take ${blobEnd} bytes of a blob of ${blobSize}`)
    this.layerSize = layerEnd
    this.blobSize = blobSize
  }

  /** Where the frames that hold the layer end in the blob. */
  get framesEnd(): number {
    return this.#blobStarts.at(-1) ?? 0
  }

  blobRange(unit: number): ByteRange {
    return rangeOf(this.#blobStarts, unit)
  }

  async decode(unit: number, blob: Uint8Array, into?: Uint8Array): Promise<Uint8Array> {
    const { start, end } = this.blobRange(unit)
    const size = (this.starts[unit + 1] ?? 0) - (this.starts[unit] ?? 0)
    const at = `unit ${unit} of the layer, bytes [${start}, ${end}) of its blob`
    if (blob.length !== end - start) {
      throw new LayerError('DATA_LOSS', `${at}: got ${blob.length} bytes`, { unit })
    }
    const decoded = into ?? Buffer.allocUnsafe(size)
    await decodeZstdInto(decoded, blob, start)
    return decoded
  }

  toBytes(): Uint8Array {
    const writer = new ByteWriter()
    writer.uint(layerMapKind.zstd)
    writer.uint(this.blobSize)
    writeUnits(writer, this)
    return writer.written()
  }

  /** The way back from `toBytes`. Throws LayerError DATA_LOSS if the bytes are no such map. */
  static fromBytes(bytes: Uint8Array): ZstdLayerMap {
    const reader = new ByteReader(bytes, 'zstd layer map')
    if (reader.uint() !== layerMapKind.zstd) throw reader.broken('it is a map of another kind')
    const blobSize = reader.uint()
    const map = new ZstdLayerMap(readUnits(reader), blobSize)
    reader.end()
    return map
  }
}

/** Writes the units of a map; the size of the blob is not among them, since a layer's index is part of the blob. */
export function writeUnits(writer: ByteWriter, map: ZstdLayerMap): void {
  const count = map.starts.length - 1
  writer.uint(count)
  for (let unit = 0; unit < count; unit++) {
    const blob = map.blobRange(unit)
    const layer = rangeOf(map.starts, unit)
    writer.uint(blob.end - blob.start)
    writer.uint(layer.end - layer.start)
  }
}

export function readUnits(reader: ByteReader): ZstdUnit[] {
  const count = reader.count(UNITS_MAX, 2)
  const units: ZstdUnit[] = []
  for (let unit = 0; unit < count; unit++) {
    units.push({ blobBytes: reader.uint(), layerBytes: reader.uint() })
  }
  return units
}

function rangeOf(starts: Float64Array, unit: number): ByteRange {
  const start = starts[unit]
  const end = starts[unit + 1]
  if (start === undefined || end === undefined) {
    throw new RangeError(`the layer has ${starts.length - 1} units, there is no unit ${unit}`)
  }
  return { start, end }
}

function isWithin(bytes: number, max: number): boolean {
  return bytes > 0 && bytes <= max
}

function refused(what: string): LayerError {
  return new LayerError('INVALID_ARGUMENT', `zstd layer map: ${what}`)
}
