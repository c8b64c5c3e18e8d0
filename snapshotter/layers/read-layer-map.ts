import type { LayerMap } from '../blobs/layer-map.ts'
import { layerMapKind } from '../blobs/layer-map-kind.ts'
import { LayerError } from '../errors.ts'
import { ChunkLayerMap } from '../toc/chunked/chunk-layer-map.ts'
import { GzipLayerMap } from '../toc/gzip/gzip-layer-map.ts'
import { TarLayerMap } from '../toc/tar-layer-map.ts'
import { ZstdLayerMap } from '../toc/zstd-layer-map.ts'
import { StreamedLayerMap } from './streamed-layer-map.ts'

/** The map that `toBytes` of any kind wrote. Throws LayerError DATA_LOSS, or UNIMPLEMENTED for a kind of a newer agent. */
export function readLayerMap(bytes: Uint8Array): LayerMap {
  switch (bytes[0]) {
    case layerMapKind.tar:
      return TarLayerMap.fromBytes(bytes)
    case layerMapKind.zstd:
      return ZstdLayerMap.fromBytes(bytes)
    case layerMapKind.gzip:
      return GzipLayerMap.fromBytes(bytes)
    case layerMapKind.chunks:
      return ChunkLayerMap.fromBytes(bytes)
    case layerMapKind.streamed:
      return StreamedLayerMap.fromBytes(bytes)
    default:
      throw new LayerError('UNIMPLEMENTED', `a stored layer map is of the unknown kind ${bytes[0]}`)
  }
}
