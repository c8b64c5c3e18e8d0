import { isEncrypted } from './encryption/layer-encryption.ts'
import { ImageError } from './errors.ts'
import {
  type IndexedImage,
  type IndexedLayer,
  type IndexImageOptions,
  type LayerIndexing,
  WHY_IMPOSSIBLE,
} from './index-image.ts'
import { indexGzipLayer } from './layers/index-gzip-layer.ts'
import { type Digest, verifyDigest } from './oci/digest.ts'
import { IMAGE_CONFIG_BYTES_MAX, parseImageConfig } from './oci/image-config.ts'
import {
  checkRunnable,
  type ImageManifest,
  MANIFEST_BYTES_MAX,
  parseManifest,
} from './oci/manifest.ts'
import type { ImageToPush } from './publish/image-to-push.ts'
import { type ImportedNode, importBlob, writeDirectory } from './publish/import-image.ts'
import { LAYER_INDEX_ANNOTATION } from './toc/layer-index.ts'
import { encodeSideIndex, SIDE_INDEXES_DIRECTORY } from './toc/side-index.ts'
import { SNIFF_BYTES, sniffCompression } from './toc/sniff-compression.ts'
import { vouchedTable } from './toc/table-annotations.ts'

/**
 * Makes the layers of an image lazily readable that lies elsewhere, as in a registry: reads each gzip layer once, and writes a root with
 * `indexes/<layer digest>` alone. Nodes that are told of it read the layers by them where they lie. Rejects as `indexImage`, and with
 * ImageError FAILED_PRECONDITION if no layer needs an index.
 */
export async function indexForeignImage(
  image: ImageToPush,
  { sink, signal, onProgress }: Pick<IndexImageOptions, 'sink' | 'signal' | 'onProgress'>,
): Promise<IndexedImage> {
  const layers = new Map<Digest, LayerIndexing>()
  const files = new Map<string, ImportedNode>()
  for (const { manifest, diffIds } of await foreignManifests(image, signal)) {
    for (const [
      position,
      { digest, size, mediaType, annotations = {} },
    ] of manifest.layers.entries()) {
      const diffId = diffIds[position]
      if (layers.has(digest) || diffId === undefined) continue
      const about = { digest, blobBytes: size, cid: undefined }
      const obstacle = isEncrypted(mediaType)
        ? ({ kind: 'impossible', because: WHY_IMPOSSIBLE.encrypted } as const)
        : vouchedTable(annotations) !== undefined || LAYER_INDEX_ANNOTATION in annotations
          ? ({ kind: 'needs-none', because: 'it has a table of contents of its own' } as const)
          : undefined
      if (obstacle !== undefined) {
        layers.set(digest, { ...about, ...obstacle })
        continue
      }
      const started = performance.now()
      const layer = { blobDigest: digest, blobSize: size, diffId }
      const index = await foreignIndex(image.blob(digest, signal), layer, onProgress)
      if (index === undefined) {
        layers.set(digest, { ...about, kind: 'impossible', because: WHY_IMPOSSIBLE.notGzip })
        continue
      }
      files.set(digest, await importBlob(once(index), 'kubo', sink, signal))
      const elapsedMs = performance.now() - started
      layers.set(digest, {
        ...about,
        kind: 'indexed',
        by: 'reading',
        indexBytes: index.length,
        elapsedMs,
      })
    }
  }
  if (files.size === 0) {
    const why = [...layers.values()].map((layer) => ('because' in layer ? layer.because : ''))
    const message = `no layer of the image can be given an index: ${[...new Set(why)].join('; ')}`
    throw new ImageError('FAILED_PRECONDITION', message)
  }
  const indexes = await writeDirectory(files, sink, signal)
  const { cid: root } = await writeDirectory(
    new Map([[SIDE_INDEXES_DIRECTORY, indexes]]),
    sink,
    signal,
  )
  return { root, layers: [...layers.values()] }
}

/** The index of a layer that is read from its start; undefined if that shows that it is no gzip. */
async function foreignIndex(
  blob: AsyncIterable<Uint8Array>,
  layer: IndexedLayer,
  onProgress: IndexImageOptions['onProgress'],
): Promise<Uint8Array | undefined> {
  const pieces = blob[Symbol.asyncIterator]()
  try {
    let start = Buffer.alloc(0)
    while (start.length < SNIFF_BYTES) {
      const step = await pieces.next()
      if (step.done === true) break
      start = Buffer.concat([start, step.value])
    }
    if (sniffCompression(start) !== 'gzip') return undefined
    const counted = async function* (): AsyncGenerator<Uint8Array, void> {
      let doneBytes = start.length
      yield start
      for (let step = await pieces.next(); step.done !== true; step = await pieces.next()) {
        yield step.value
        doneBytes += step.value.length
        onProgress?.({ digest: layer.blobDigest, doneBytes, totalBytes: layer.blobSize })
      }
    }
    return encodeSideIndex(layer, await indexGzipLayer(counted(), layer))
  } finally {
    await pieces.return?.()
  }
}

type ForeignManifest = { readonly manifest: ImageManifest; readonly diffIds: readonly Digest[] }

/** The image's manifest, or those of its index that are container images, with the diff IDs of their configs; all checked. */
async function foreignManifests(
  image: ImageToPush,
  signal: AbortSignal,
): Promise<ForeignManifest[]> {
  const read = async (digest: Digest, bytesMax: number): Promise<Buffer> => {
    const parts: Uint8Array[] = []
    let bytes = 0
    for await (const part of image.blob(digest, signal)) {
      bytes += part.length
      if (bytes > bytesMax) {
        throw new ImageError('RESOURCE_EXHAUSTED', `${digest} has more than ${bytesMax} bytes`)
      }
      parts.push(part)
    }
    const whole = Buffer.concat(parts)
    verifyDigest(whole, digest, digest)
    return whole
  }
  const top = parseManifest(image.manifest, 'the manifest')
  const found: ImageManifest[] = []
  if (top.kind === 'manifest') {
    checkRunnable(top, 'the manifest')
    found.push(top)
  } else {
    for (const { digest } of top.manifests) {
      const child = parseManifest(await read(digest, MANIFEST_BYTES_MAX), digest)
      if (child.kind === 'manifest' && isRunnable(child)) found.push(child)
    }
  }
  return Promise.all(
    found.map(async (manifest) => {
      const { digest } = manifest.config
      const config = await read(digest, IMAGE_CONFIG_BYTES_MAX)
      return { manifest, diffIds: parseImageConfig(config, `config ${digest}`).diffIds }
    }),
  )
}

function isRunnable(manifest: ImageManifest): boolean {
  try {
    checkRunnable(manifest, 'it')
    return true
  } catch (error) {
    if (error instanceof ImageError && error.code === 'FAILED_PRECONDITION') return false
    throw error
  }
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array, void> {
  yield bytes
}
