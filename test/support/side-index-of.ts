import { indexGzipLayer } from '../../snapshotter/layers/index-gzip-layer.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { encodeSideIndex, type IndexedLayer } from '../../snapshotter/toc/side-index.ts'

/** A gzip blob and its tar, named as an image would. */
export function indexedLayerOf(blob: Uint8Array, tar: Uint8Array): IndexedLayer {
  return { blobDigest: digestOf(blob), blobSize: blob.length, diffId: digestOf(tar) }
}

/** The side index of a gzip blob, as `ipdr index` makes it. */
export async function sideIndexOf(blob: Uint8Array, tar: Uint8Array): Promise<Uint8Array> {
  const layer = indexedLayerOf(blob, tar)
  const pieces = async function* (): AsyncGenerator<Uint8Array> {
    yield blob
  }
  return encodeSideIndex(layer, await indexGzipLayer(pieces(), layer))
}
