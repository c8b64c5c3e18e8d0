import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from './block-source.ts'
import type { IpfsImage } from './dag/ipfs-image.ts'
import { openIpfsImage } from './dag/open-ipfs-image.ts'
import { readImageConfig } from './dag/read-image-config.ts'
import { findSideIndex } from './dag/side-indexes.ts'
import type { UnixfsFile } from './dag/unixfs-file.ts'
import { isEncrypted } from './encryption/layer-encryption.ts'
import { CodedError, ImageError } from './errors.ts'
import { indexGzipLayer } from './layers/index-gzip-layer.ts'
import type { Descriptor } from './oci/descriptor.ts'
import type { Digest } from './oci/digest.ts'
import { checkRunnable, type ImageManifest, parseManifest } from './oci/manifest.ts'
import type { ImageReference } from './oci/reference.ts'
import { addFilesBeside } from './publish/add-files-beside.ts'
import type { BlockSink } from './publish/import-image.ts'
import { LAYER_INDEX_ANNOTATION } from './toc/layer-index.ts'
import {
  decodeSideIndex,
  encodeSideIndex,
  type IndexedLayer,
  SIDE_INDEXES_DIRECTORY,
} from './toc/side-index.ts'
import { SNIFF_BYTES, sniffCompression } from './toc/sniff-compression.ts'

export type { IndexedLayer } from './toc/side-index.ts'

/** A layer, and what became of it. */
export type LayerIndexing = {
  readonly digest: Digest
  /** Of the blob, as UnixFS file; undefined if the image does not have it. */
  readonly cid: CID | undefined
  readonly blobBytes: number
} & LayerOutcome

type LayerOutcome =
  | {
      readonly kind: 'indexed'
      /** Whether the layer was read for it, or somebody who had read it gave the index. */
      readonly by: 'reading' | 'known'
      readonly indexBytes: number
      readonly elapsedMs: number
    }
  /** The image has an index for it already, which fits. */
  | { readonly kind: 'had-index'; readonly indexBytes: number }
  /** It can be read lazily as it is; `because` is a sentence. */
  | { readonly kind: 'needs-none'; readonly because: string }
  /** It cannot be indexed; `because` is a sentence. */
  | { readonly kind: 'impossible'; readonly because: string }

export type IndexedImage = {
  /** The image with its indexes: `root` as it was, if no index was added. */
  readonly root: CID
  /** Each layer once, in the order of their first use. */
  readonly layers: readonly LayerIndexing[]
}

/** What `indexImage` reads and writes. */
export type IndexImageOptions = {
  readonly blocks: BlockSource
  /** Where the new blocks go: the indexes and two directories. No block of the image itself is put there. */
  readonly sink: BlockSink
  readonly signal: AbortSignal
  /** The side index of a layer, of somebody trusted who has read all of it. One that does not fit is a failure. Undefined: read it. */
  readonly known?: (
    layer: IndexedLayer & { readonly blobCid: CID },
  ) => Promise<Uint8Array | undefined>
  readonly onProgress?: (progress: {
    readonly digest: Digest
    readonly doneBytes: number
    readonly totalBytes: number
  }) => void
}

/**
 * Makes the layers of an image lazily readable that others wrote, without writing them anew: reads each once, and writes a root
 * that leads to the same manifests and blobs and has `indexes/<layer digest>` beside them. Of an index of platforms, those that
 * are there. Encrypted layers get none. Rejects with ImageError or LayerError if the image is not what its digests say, with
 * FAILED_PRECONDITION if all its layers are encrypted, and as BlockSource.get and the sink.
 */
export async function indexImage(
  { root, selector }: ImageReference,
  options: IndexImageOptions,
): Promise<IndexedImage> {
  const { blocks, sink, signal } = options
  const request = { priority: 'foreground', signal } as const
  const image = await openIpfsImage(root, blocks, request)
  const indexing = new ImageIndexing(image, options)
  const manifests = await manifestsOf(image, selector, request)
  const mediaTypes = manifests.flatMap(({ layers }) => layers.map(({ mediaType }) => mediaType))
  if (mediaTypes.length > 0 && mediaTypes.every(isEncrypted)) {
    const message = `every layer of ${root.toString()} is encrypted, and an index beside it would show what they hide: publish the source again with ipdr push --encrypt-to, which puts the index inside the ciphertext`
    throw new ImageError('FAILED_PRECONDITION', message)
  }
  for (const manifest of manifests) {
    await indexing.manifest(manifest, request)
  }
  const { layers, added } = indexing
  const beside = [{ directory: SIDE_INDEXES_DIRECTORY, files: added }]
  const indexed =
    added.size === 0 ? root : await addFilesBeside(root, beside, { blocks, sink }, request)
  return { root: indexed, layers: [...layers.values()] }
}

class ImageIndexing {
  readonly layers: Map<Digest, LayerIndexing> = new Map()
  readonly added: Map<Digest, Uint8Array> = new Map()
  readonly #image: IpfsImage
  readonly #options: IndexImageOptions

  constructor(image: IpfsImage, options: IndexImageOptions) {
    this.#image = image
    this.#options = options
  }

  async manifest(manifest: ImageManifest, request: BlockRequest): Promise<void> {
    const { diffIds } = await readImageConfig(this.#image, manifest, request)
    for (const [position, layer] of manifest.layers.entries()) {
      const diffId = diffIds[position]
      if (diffId === undefined || diffIds.length !== manifest.layers.length) {
        const message = `a manifest of ${this.#image.root.toString()} has ${manifest.layers.length} layers, its config has ${diffIds.length} diff IDs`
        throw new ImageError('INVALID_ARGUMENT', message)
      }
      if (this.layers.has(layer.digest)) continue
      this.layers.set(layer.digest, await this.#layer(layer, diffId, request))
    }
  }

  async #layer(
    descriptor: Descriptor,
    diffId: Digest,
    request: BlockRequest,
  ): Promise<LayerIndexing> {
    const blob = await this.#blob(descriptor, request)
    const { digest, size: blobBytes } = descriptor
    const outcome: LayerOutcome =
      blob === undefined
        ? { kind: 'impossible', because: 'the image does not have it' }
        : await this.#outcome(blob, descriptor, diffId, request)
    return { digest, blobBytes, cid: blob?.cid, ...outcome }
  }

  async #outcome(
    blob: UnixfsFile,
    { digest, mediaType, annotations = {} }: Descriptor,
    diffId: Digest,
    request: BlockRequest,
  ): Promise<LayerOutcome> {
    if (isEncrypted(mediaType)) return { kind: 'impossible', because: WHY_IMPOSSIBLE.encrypted }
    if (LAYER_INDEX_ANNOTATION in annotations) {
      return { kind: 'needs-none', because: 'it has a table of contents of its own' }
    }
    const end = Math.min(SNIFF_BYTES, blob.size)
    const compression = sniffCompression(await blob.readRange({ start: 0, end }, request))
    if (compression === 'tar') {
      return { kind: 'needs-none', because: 'a plain tar is read where it lies' }
    }
    if (compression !== 'gzip') {
      return { kind: 'impossible', because: WHY_IMPOSSIBLE[compression] }
    }
    if (blob.leafCount === 1) {
      return { kind: 'needs-none', because: 'it is one block, its index would be one more' }
    }
    const layer = { blobDigest: digest, blobSize: blob.size, diffId }
    const before = await this.#indexBefore(layer, request)
    if (before !== undefined) return { kind: 'had-index', indexBytes: before.length }
    const started = performance.now()
    const known = await this.#known(blob, layer)
    const index = known ?? (await this.#read(blob, layer, request))
    this.added.set(digest, index)
    return {
      kind: 'indexed',
      by: known === undefined ? 'reading' : 'known',
      indexBytes: index.length,
      elapsedMs: performance.now() - started,
    }
  }

  async #read(blob: UnixfsFile, layer: IndexedLayer, request: BlockRequest): Promise<Uint8Array> {
    const { onProgress } = this.#options
    const counted = async function* (): AsyncGenerator<Uint8Array, void> {
      let doneBytes = 0
      for await (const bytes of blob.stream({ start: 0, end: blob.size }, request)) {
        yield bytes
        doneBytes += bytes.length
        onProgress?.({ digest: layer.blobDigest, doneBytes, totalBytes: blob.size })
      }
    }
    return encodeSideIndex(layer, await indexGzipLayer(counted(), layer))
  }

  /** The index that the image has for a layer; undefined if it has none that can be used. */
  async #indexBefore(layer: IndexedLayer, request: BlockRequest): Promise<Uint8Array | undefined> {
    const named = { digest: layer.blobDigest, size: layer.blobSize }
    try {
      const stored = await findSideIndex(this.#image.root, named, this.#options.blocks, request)
      if (stored !== undefined) decodeSideIndex(stored, layer)
      return stored
    } catch (error) {
      if (request.signal.aborted || !(error instanceof CodedError)) throw error
      return undefined
    }
  }

  async #known(blob: UnixfsFile, layer: IndexedLayer): Promise<Uint8Array | undefined> {
    const known = await this.#options.known?.({ ...layer, blobCid: blob.cid })
    if (known !== undefined) decodeSideIndex(known, layer)
    return known
  }

  /** Undefined for a layer that is not under the root, as nondistributable ones are not. */
  async #blob(
    { digest, size }: Descriptor,
    request: BlockRequest,
  ): Promise<UnixfsFile | undefined> {
    let blob: UnixfsFile
    try {
      blob = await this.#image.blob(digest, request)
    } catch (error) {
      if (error instanceof ImageError && error.code === 'NOT_FOUND') return undefined
      throw error
    }
    if (blob.size === size) return blob
    const message = `layer ${digest} has ${blob.size} bytes at ${blob.cid.toString()}, its manifest says ${size}`
    throw new ImageError('DATA_LOSS', message, { digest })
  }
}

/** Why a layer can have no index, in sentences. */
export const WHY_IMPOSSIBLE = {
  notGzip: 'it is not gzip: an index is of gzip layers',
  zstd: 'zstd can only be decoded from the start of a frame, and such a layer is one frame: a table of contents alone would not make it lazy; push the image again with ipdr push',
  encrypted: 'it is encrypted, and an index beside it would show what it hides',
  unknown: 'it is neither tar nor gzip nor zstd: an encrypted or damaged layer',
} as const

/** The manifest of the selector, or those of an index that are container images and that were published. */
async function manifestsOf(
  image: IpfsImage,
  selector: string,
  request: BlockRequest,
): Promise<ImageManifest[]> {
  const { bytes, digest } = await image.manifest(selector, request)
  const found = parseManifest(bytes, `manifest ${digest} of ${image.root.toString()}`)
  if (found.kind === 'manifest') {
    checkRunnable(found, `manifest ${digest} of ${image.root.toString()}`)
    return [found]
  }
  const manifests: ImageManifest[] = []
  for (const { digest } of found.manifests) {
    try {
      const { bytes } = await image.manifest(digest, request)
      const manifest = parseManifest(bytes, `manifest ${digest}`)
      if (manifest.kind === 'index') continue
      checkRunnable(manifest, `manifest ${digest}`)
      manifests.push(manifest)
    } catch (error) {
      const isOther =
        error instanceof ImageError &&
        (error.code === 'NOT_FOUND' || error.code === 'FAILED_PRECONDITION')
      if (!isOther) throw error
    }
  }
  return manifests
}
