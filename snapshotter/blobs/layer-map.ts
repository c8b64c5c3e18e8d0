import type { ByteRange } from '../byte-range.ts'

/** How a unit is made of its blob bytes and nothing else; units of one coding and the same bytes are the same unit. */
export type UnitCoding = 'plain' | 'zstd'

/**
 * How the layer file (the uncompressed tar) is made from the blob (what IPFS holds), unit by unit.
 * A unit is the smallest part that can be fetched and decoded alone: an IPFS leaf of a plain tar, the zstd frames of
 * one leaf, the span between two checkpoints of a gzip seek index. Units cover the layer file without gap or overlap.
 */
export interface LayerMap {
  /** Bytes of the layer file. */
  readonly layerSize: number
  /** Bytes of the blob. */
  readonly blobSize: number
  /** Where units start in the layer file, ascending, with `layerSize` as last element: unit i is [starts[i], starts[i+1]). */
  readonly starts: Float64Array
  /** Undefined: a unit cannot be decoded from its blob bytes alone. */
  readonly coding?: UnitCoding
  /** The blob bytes that unit `unit` is decoded from. */
  blobRange(unit: number): ByteRange
  /**
   * Decodes a unit from exactly the bytes of its `blobRange`, which must not change meanwhile. Throws LayerError DATA_LOSS, or rejects
   * with it, if they do not make it. What it gives may lie in `into`, memory as long as the unit, or be `blob` itself.
   */
  decode(unit: number, blob: Uint8Array, into?: Uint8Array): Uint8Array | Promise<Uint8Array>
  /** The map as bytes, for the disk; `readLayerMap` is the way back. */
  toBytes(): Uint8Array
}
