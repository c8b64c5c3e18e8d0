import type { LayerMap } from '../blobs/layer-map.ts'
import { layerMapKind } from '../blobs/layer-map-kind.ts'
import type { ByteRange } from '../byte-range.ts'
import { LayerError } from '../errors.ts'

/** Bytes of a unit. 4 MiB: what is counted and flushed at once; nothing is ever fetched by it. */
const UNIT_BYTES = 4 * 1024 * 1024

const STORED_BYTES = 17

/** Bytes of a layer that a map is read for. 1 TiB: twenty times the store of a node. */
const LAYER_BYTES_MAX = 1024 ** 4

/**
 * The map of a layer that can only be read from front to back: tar+zstd without an index, where a frame may be the whole
 * layer. Its bytes were all kept when it was read, and none of them can be fetched alone again.
 */
export class StreamedLayerMap implements LayerMap {
  readonly layerSize: number
  readonly blobSize: number
  readonly starts: Float64Array

  constructor({ layerSize, blobSize }: { readonly layerSize: number; readonly blobSize: number }) {
    this.layerSize = layerSize
    this.blobSize = blobSize
    const units = Math.ceil(layerSize / UNIT_BYTES)
    this.starts = Float64Array.from({ length: units + 1 }, (_, unit) =>
      Math.min(unit * UNIT_BYTES, layerSize),
    )
  }

  /** Throws LayerError FAILED_PRECONDITION: no part of the blob makes a unit, and all of it is not fetched for one. */
  blobRange(unit: number): ByteRange {
    throw gone(unit)
  }

  /** Throws as `blobRange`. */
  decode(unit: number): Uint8Array {
    throw gone(unit)
  }

  toBytes(): Uint8Array {
    const bytes = Buffer.alloc(STORED_BYTES)
    bytes.writeUInt8(layerMapKind.streamed, 0)
    bytes.writeDoubleLE(this.layerSize, 1)
    bytes.writeDoubleLE(this.blobSize, 9)
    return bytes
  }

  /** The way back from `toBytes`. Throws LayerError DATA_LOSS if the bytes are no such map. */
  static fromBytes(bytes: Uint8Array): StreamedLayerMap {
    const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    if (view.length === STORED_BYTES && view.readUInt8(0) === layerMapKind.streamed) {
      const [layerSize, blobSize] = [view.readDoubleLE(1), view.readDoubleLE(9)]
      const isSize = (size: number): boolean =>
        Number.isInteger(size) && size >= 0 && size <= LAYER_BYTES_MAX
      if (isSize(layerSize) && isSize(blobSize))
        return new StreamedLayerMap({ layerSize, blobSize })
    }
    throw new LayerError('DATA_LOSS', `a stored layer map of ${bytes.length} bytes is damaged`)
  }
}

function gone(unit: number): LayerError {
  return new LayerError(
    'FAILED_PRECONDITION',
    `unit ${unit} of a zstd layer without an index is gone from this node: remove the image and pull it again`,
    { unit },
  )
}
