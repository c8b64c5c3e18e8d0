import type { LayerMap } from '../../../snapshotter/blobs/layer-map.ts'
import type { UnitSource } from '../../../snapshotter/blobs/layer-source.ts'
import { seeded } from '../../support/seeded.ts'

/** A layer made from a seed, whose blob is the layer file itself. */
export type RandomLayer = {
  readonly bytes: Buffer
  readonly map: LayerMap
  /** Serves units at once, and notes which. */
  readonly source: UnitSource & { readonly fetched: number[] }
}

/** A layer of `units` units of 1 to `unitBytesMax` random bytes each. */
export function randomLayer(seed: number, units: number, unitBytesMax: number): RandomLayer {
  const random = seeded(seed)
  const lengths = Array.from({ length: units }, () => 1 + random(unitBytesMax))
  const starts = lengths.reduce((all, length) => [...all, (all.at(-1) ?? 0) + length], [0])
  const bytes = Buffer.alloc(starts.at(-1) ?? 0)
  for (let at = 0; at < bytes.length; at++) bytes[at] = 1 + random(255) // Never 0: a hole must show.
  const map = plainMap(Float64Array.from(starts))
  const fetched: number[] = []
  const source = {
    fetched,
    fetchUnit: (unit: number) => {
      fetched.push(unit)
      return Promise.resolve(unitBytes({ bytes, map }, unit))
    },
  }
  return { bytes, map, source }
}

/** A copy of the bytes of one unit. */
export function unitBytes(layer: Pick<RandomLayer, 'bytes' | 'map'>, unit: number): Uint8Array {
  return Uint8Array.from(layer.bytes.subarray(layer.map.starts[unit], layer.map.starts[unit + 1]))
}

/** The map of a blob that is the layer file. */
export function plainMap(starts: Float64Array): LayerMap {
  const layerSize = starts.at(-1) ?? 0
  return {
    layerSize,
    blobSize: layerSize,
    starts,
    blobRange: (unit) => ({ start: starts[unit] ?? 0, end: starts[unit + 1] ?? 0 }),
    decode: (_unit, blob) => blob,
    toBytes: () => new Uint8Array(),
  }
}
