import { readFileSync } from 'node:fs'
import { indexGzipLayer } from '../../snapshotter/layers/index-gzip-layer.ts'
import { parseDigest } from '../../snapshotter/oci/digest.ts'
import { encodeSideIndex, type IndexedLayer } from '../../snapshotter/toc/side-index.ts'
import { buildDemoImage } from '../support/images/demo-image.ts'
import type { LayerBlob } from '../support/images/oci-layout.ts'
import type { BenchContext, Measurement } from './bench-context.ts'
import type { Figure } from './figure.ts'

/** Layers below it are not judged, in bytes. 1 MiB: four blocks, which a node has in one answer. */
const JUDGED_BYTES_MIN = 1024 ** 2

/** What `ipdr index` makes of the gzip layers of the demo's image, as Debian's tools wrote them. */
export const layerIndex: Measurement = { names: ['index-size', 'index-time'], measure }

async function measure({ say }: BenchContext): Promise<Figure[]> {
  const { layers } = await buildDemoImage()
  say('indexing the gzip layers of the demo image')
  const indexed: Indexed[] = []
  for (const layer of layers.filter(({ size }) => size >= JUDGED_BYTES_MIN)) {
    indexed.push(await index(layer))
  }
  const largest = indexed.toSorted((a, b) => share(b) - share(a))[0]
  if (largest === undefined) throw new Error('the demo image has no layers')
  const blobBytes = sum(indexed.map((each) => each.blobBytes))
  const indexBytes = sum(indexed.map((each) => each.indexBytes))
  const ms = sum(indexed.map((each) => each.ms))
  return [
    {
      name: 'index-size',
      value: share(largest) * 100,
      unit: '%',
      limit: { atMost: 1.5 },
      detail: `of the gzip layer, the largest of ${indexed.length}; all together ${((indexBytes / blobBytes) * 100).toFixed(2)} %, ${(indexBytes / 1e6).toFixed(1)} of ${(blobBytes / 1e6).toFixed(0)} MB`,
    },
    {
      name: 'index-time',
      value: blobBytes / 1000 / ms,
      unit: 'MB/s',
      detail: `of gzip, from memory, both digests checked: ${(ms / 1000).toFixed(1)} s for ${(blobBytes / 1e6).toFixed(0)} MB, once`,
    },
  ]
}

type Indexed = { readonly blobBytes: number; readonly indexBytes: number; readonly ms: number }

async function index({ path, digest, diffId }: LayerBlob): Promise<Indexed> {
  const blob = readFileSync(path)
  const layer: IndexedLayer = {
    blobDigest: `sha256:${parseDigest(digest).hex}`,
    blobSize: blob.length,
    diffId: `sha256:${parseDigest(diffId).hex}`,
  }
  const started = performance.now()
  const pieces = async function* (): AsyncGenerator<Uint8Array> {
    yield blob
  }
  const stored = encodeSideIndex(layer, await indexGzipLayer(pieces(), layer))
  return {
    blobBytes: blob.length,
    indexBytes: stored.length,
    ms: performance.now() - started,
  }
}

function share({ indexBytes, blobBytes }: Indexed): number {
  return indexBytes / blobBytes
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
