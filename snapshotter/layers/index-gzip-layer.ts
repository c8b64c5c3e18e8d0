import { GzipIndexer } from '../toc/gzip/gzip-indexer.ts'
import type { IndexedLayer, SideIndex } from '../toc/side-index.ts'
import { LayerReading, layerBytesBound } from './layer-reading.ts'

/**
 * Makes the side index of a tar+gzip layer by reading all of its blob once, and keeps nothing of it. Rejects with LayerError:
 * DATA_LOSS if the blob or its tar have other digests than the image says, and as GzipIndexer and TarStreamWalk; or as `blob`.
 */
export async function indexGzipLayer(
  blob: AsyncIterable<Uint8Array>,
  layer: IndexedLayer,
): Promise<SideIndex> {
  const reading = new LayerReading(layer)
  const indexer = new GzipIndexer({ outputBytesMax: layerBytesBound(layer.blobSize) })
  for await (const piece of reading.ofBlob(blob)) {
    for (const bytes of indexer.push(piece)) reading.ofLayer(bytes)
  }
  // Before the tar is looked at: one that is cut off may be so because the gzip is.
  const map = indexer.finish()
  return { map, toc: reading.finish() }
}
