import type { CID } from 'multiformats/cid'
import { ENCRYPTED_SUFFIX, isEncrypted } from '../encryption/layer-encryption.ts'
import type { Recipient } from '../encryption/recipient.ts'
import { CodedError, ImageError } from '../errors.ts'
import type { Descriptor } from '../oci/descriptor.ts'
import { MEDIA_TYPES } from '../oci/descriptor.ts'
import type { Digest } from '../oci/digest.ts'
import { DigestCheck, digestOf } from '../oci/digest.ts'
import { IMAGE_CONFIG_BYTES_MAX, parseImageConfig } from '../oci/image-config.ts'
import type { ImageIndex, ImageManifest } from '../oci/manifest.ts'
import { MANIFEST_BYTES_MAX, parseManifest } from '../oci/manifest.ts'
import { formatPlatform } from '../oci/platform.ts'
import { DEFAULT_TAG } from '../oci/reference.ts'
import { decompressLayer } from './decompress-layer.ts'
import { encryptLeaves } from './encrypt-leaves.ts'
import type { ImageToPush } from './image-to-push.ts'
import type { BlockSink, ImportedNode } from './import-image.ts'
import { ImageDirectory, importBlob } from './import-image.ts'
import { layersToEncrypt } from './layers-to-encrypt.ts'
import type { StartReads } from './start-reads.ts'
import type { WrittenLayer } from './write-layer.ts'
import { PUBLISHED_LAYER_MEDIA_TYPE, writeLayer } from './write-layer.ts'

/** How deep indexes may hold indexes. 3: one is usual, containerd itself follows as many as there are. */
const INDEX_DEPTH_MAX = 3

/** The annotation with which BuildKit ties an attestation to the manifest it speaks of. */
const ATTESTED_MANIFEST_ANNOTATION = 'vnd.docker.reference.digest'

/** A layer as it was and as it is published. */
export type PushedLayer = {
  readonly sourceDigest: Digest
  readonly sourceBytes: number
  readonly digest: Digest
  readonly bytes: number
  /** Bytes of the tar; undefined for a blob that was kept as it is. */
  readonly layerBytes: number | undefined
  readonly entries: number | undefined
  readonly leaves: number | undefined
  readonly cid: CID
  /** Why the layer was kept as it is, and has no table of contents. */
  readonly keptBecause?: string
  /** Why podman, CRI-O and stargz-snapshotter must read the layer whole. */
  readonly chunkedObstacle?: string
  /** For whom it was encrypted here: `jwe`, `provider.<name>`, each kind once. */
  readonly recipientKinds?: readonly string[]
}

/** For whom layers are encrypted. */
export type PushEncryption = {
  readonly recipients: readonly Recipient[]
  /** Which layers, as `layersToEncrypt` counts them; all unless given. */
  readonly layers?: readonly number[]
}

export type PushedImage = {
  /** What the image is pulled by. */
  readonly root: CID
  /** Of the new manifest or index. */
  readonly digest: Digest
  /** Each layer once, in the order of their first use. */
  readonly layers: readonly PushedLayer[]
  /** Platforms of the index that the source does not have. */
  readonly missingPlatforms: readonly string[]
  /** Attestations of a source that is encrypted: they list what is in the layers, and would be there for all to read. */
  readonly leftOut: readonly Digest[]
}

export type PushProgress = {
  /** The layer in the source, and how many of its bytes are done, of how many. */
  readonly digest: Digest
  readonly doneBytes: number
  readonly totalBytes: number
}

export type PushOptions = {
  readonly signal: AbortSignal
  /** The name under `manifests/`; 'latest' unless given. */
  readonly tag?: string
  readonly onProgress?: (progress: PushProgress) => void
  /** Layers are encrypted, or the push fails: none that was to be is published in plain text. */
  readonly encryption?: PushEncryption
  /** As `writeLayer`. */
  readonly compact?: boolean
  readonly startReads?: ImageStartReads | undefined
}

/** What starts read of a layer of the image for a platform, "linux/amd64", with these layers; undefined if nobody knows. */
export type ImageStartReads = (
  layer: Digest,
  image: { readonly platform: string; readonly diffIds: readonly Digest[] },
) => StartReads | undefined

/**
 * Publishes an image: every layer is written anew in our format, configs stay as they are (so diff IDs and chain IDs do too),
 * manifests and indexes name the new layers, and all of it goes under one root CID in the IPDR layout.
 * Rejects with ImageError or LayerError if the image is not what its digests and diff IDs say, with CANCELLED, or as the sink;
 * FAILED_PRECONDITION if something cannot be encrypted that should be, and as `Recipient.wrap`.
 * Blocks put before a failure stay in the sink; nothing refers to them.
 */
export async function pushImage(
  image: ImageToPush,
  sink: BlockSink,
  options: PushOptions,
): Promise<PushedImage> {
  const push = new Push(image, sink, options)
  const { digest } = await push.document(image.manifest, options.tag ?? DEFAULT_TAG, 0)
  const { cid } = await push.directory.write(sink, options.signal)
  return {
    root: cid,
    digest,
    layers: [...push.layers.values()],
    missingPlatforms: push.missingPlatforms,
    leftOut: push.leftOut,
  }
}

class Push {
  readonly directory: ImageDirectory = new ImageDirectory()
  readonly layers: Map<string, PushedLayer> = new Map()
  readonly missingPlatforms: string[] = []
  readonly leftOut: Digest[] = []
  readonly #image: ImageToPush
  readonly #sink: BlockSink
  readonly #signal: AbortSignal
  readonly #onProgress: (progress: PushProgress) => void
  readonly #encryption: PushEncryption | undefined
  readonly #compact: boolean
  readonly #startReads: ImageStartReads | undefined
  /** Descriptors of layers that are published, by source digest and diff ID. */
  readonly #descriptors = new Map<string, Descriptor>()
  /** Whether a layer is published encrypted, by source digest: once in plain text, it would be no secret elsewhere. */
  readonly #encrypts = new Map<Digest, boolean>()

  constructor(image: ImageToPush, sink: BlockSink, options: PushOptions) {
    const { signal, onProgress, encryption, compact = false, startReads } = options
    this.#image = image
    this.#sink = sink
    this.#signal = signal
    this.#onProgress = onProgress ?? (() => {})
    this.#encryption = encryption
    this.#compact = compact
    this.#startReads = startReads
  }

  /** Publishes a manifest or index and all below it. */
  async document(
    source: Uint8Array,
    tag: string | undefined,
    depth: number,
  ): Promise<{ digest: Digest; size: number; mediaType: string }> {
    const what = `manifest ${digestOf(source)}`
    const document = parseManifest(source, what)
    const written =
      document.kind === 'index'
        ? await this.#index(document, depth)
        : await this.#manifest(document, source, what)
    if (written.bytes.length > MANIFEST_BYTES_MAX) {
      const message = `the new manifest of ${what} has ${written.bytes.length} bytes, nodes read ${MANIFEST_BYTES_MAX}: encrypt for fewer recipients`
      throw new ImageError('RESOURCE_EXHAUSTED', message)
    }
    const digest = digestOf(written.bytes)
    const file = await this.#import(written.bytes)
    this.directory.addManifest(digest, file, tag)
    if (depth > 0) this.directory.addBlob(digest, file)
    return { digest, size: written.bytes.length, mediaType: written.mediaType }
  }

  async #index(
    index: ImageIndex,
    depth: number,
  ): Promise<{ bytes: Uint8Array; mediaType: string }> {
    if (depth >= INDEX_DEPTH_MAX) {
      const message = `the image is an index of indexes, ${INDEX_DEPTH_MAX} deep and more`
      throw new ImageError('INVALID_ARGUMENT', message)
    }
    const manifests: Descriptor[] = []
    const renamed = new Map<string, Digest>()
    for (const child of index.manifests.map(unaddressed)) {
      if (this.#encryption !== undefined && isAttestation(child)) {
        this.leftOut.push(child.digest)
        continue
      }
      const source = await this.#childManifest(child)
      if (source === undefined) continue
      const { digest, size, mediaType } = await this.document(source, undefined, depth + 1)
      renamed.set(child.digest, digest)
      manifests.push({ ...child, mediaType, digest, size })
    }
    if (manifests.length === 0) {
      const message = `the source has none of the ${index.manifests.length} images of its index; pull one with all platforms`
      throw new ImageError('NOT_FOUND', message)
    }
    const { annotations } = index
    const mediaType = MEDIA_TYPES.ociIndex
    const written = {
      schemaVersion: 2,
      mediaType,
      manifests: manifests.map((manifest) => attestingRenamed(manifest, renamed)),
      ...(annotations === undefined ? {} : { annotations }),
    }
    return { bytes: Buffer.from(JSON.stringify(written)), mediaType }
  }

  /** Undefined if the source lacks it, as containerd lacks platforms that it does not run. */
  async #childManifest(child: Descriptor): Promise<Uint8Array | undefined> {
    try {
      return await this.#bytes(child, MANIFEST_BYTES_MAX)
    } catch (error) {
      if (!(error instanceof CodedError) || error.code !== 'NOT_FOUND') throw error
      const { platform, digest } = child
      this.missingPlatforms.push(platform === undefined ? digest : formatPlatform(platform))
      return undefined
    }
  }

  async #manifest(
    manifest: ImageManifest,
    source: Uint8Array,
    what: string,
  ): Promise<{ bytes: Uint8Array; mediaType: string }> {
    const configured = unaddressed(manifest.config)
    const config = await this.#bytes(configured, IMAGE_CONFIG_BYTES_MAX)
    this.directory.addBlob(configured.digest, await this.#import(config))
    if (!isImageConfig(configured.mediaType)) {
      if (this.#encryption !== undefined) {
        const message = `${what} is no container image, so nothing of it can be encrypted: push it without encryption, or an image without it`
        throw new ImageError('FAILED_PRECONDITION', message)
      }
      for (const blob of manifest.layers) await this.#keep(blob, 'it is no container image')
      return { bytes: source, mediaType: manifest.mediaType }
    }
    const { diffIds, platform } = parseImageConfig(config, `config ${manifest.config.digest}`)
    const image = { platform: formatPlatform(platform), diffIds }
    const chosen =
      this.#encryption === undefined
        ? new Set<Digest>()
        : layersToEncrypt(manifest, this.#encryption.layers, what)
    const layers: Descriptor[] = []
    for (const [index, layer] of manifest.layers.map(unaddressed).entries()) {
      const obstacle = layerObstacle(layer)
      if (obstacle !== undefined) {
        if (chosen.has(layer.digest)) checkNotInPlain(layer, obstacle)
        layers.push(await this.#keep(layer, obstacle))
        continue
      }
      const diffId = diffIds[index]
      if (diffId === undefined || diffIds.length !== manifest.layers.length) {
        const message = `${what} has ${manifest.layers.length} layers, its config lists ${diffIds.length} diff IDs`
        throw new ImageError('INVALID_ARGUMENT', message)
      }
      const encrypts = chosen.has(layer.digest)
      this.#checkOneWay(layer, encrypts)
      layers.push(
        await this.#layer(layer, diffId, {
          recipients: encrypts ? this.#encryption?.recipients : undefined,
          startReads: this.#startReads?.(diffId, image),
        }),
      )
    }
    const { annotations } = manifest
    const mediaType = MEDIA_TYPES.ociManifest
    const written = {
      schemaVersion: 2,
      mediaType,
      config: { ...configured, mediaType: MEDIA_TYPES.ociConfig },
      layers,
      ...(annotations === undefined ? {} : { annotations }),
    }
    return { bytes: Buffer.from(JSON.stringify(written)), mediaType }
  }

  /** Throws ImageError FAILED_PRECONDITION if a layer is secret in one image of the index and public in another. */
  #checkOneWay({ digest }: Descriptor, encrypts: boolean): void {
    if ((this.#encrypts.get(digest) ?? encrypts) === encrypts) {
      this.#encrypts.set(digest, encrypts)
      return
    }
    const message = `layer ${digest} would be encrypted for one platform and in plain text for another: encrypt all layers, or push the platforms one by one`
    throw new ImageError('FAILED_PRECONDITION', message, { digest })
  }

  /** Publishes a layer in our format. The same layer under two manifests is published once. */
  async #layer(
    source: Descriptor,
    diffId: Digest,
    {
      recipients,
      startReads,
    }: {
      readonly recipients: readonly Recipient[] | undefined
      readonly startReads: StartReads | undefined
    },
  ): Promise<Descriptor> {
    const key = `${source.digest} ${diffId}`
    const done = this.#descriptors.get(key)
    if (done !== undefined) return done
    const signal = this.#signal
    const compact = this.#compact
    const what = `layer ${source.digest}`
    const tar = decompressLayer(this.#blob(source), signal)
    const result: { leaves: number; written?: WrittenLayer } = { leaves: 0 }
    async function* blobLeaves(): AsyncGenerator<Uint8Array, void> {
      const plain = writeLayer(tar, { signal, compact, startReads })
      const leaves = recipients === undefined ? plain : encryptLeaves(plain, { recipients, signal })
      result.written = yield* counting(leaves, () => result.leaves++)
    }
    const file = await importBlob(blobLeaves(), 'pieces', this.#sink, signal)
    const { written, leaves } = result
    if (written === undefined) throw new TypeError(`${what}: the importer stopped before its end`)
    if (written.diffId !== diffId) {
      const message = `${what} unpacks to a tar with digest ${written.diffId}, its config says ${diffId}; build or pull the image again`
      throw new ImageError('DATA_LOSS', message, { diffId, actual: written.diffId })
    }
    const digest: Digest = `sha256:${written.digest.slice('sha256:'.length)}`
    this.directory.addBlob(digest, file)
    const descriptor: Descriptor = {
      mediaType: PUBLISHED_LAYER_MEDIA_TYPE + (recipients === undefined ? '' : ENCRYPTED_SUFFIX),
      digest,
      size: written.size,
      annotations: { ...keptAnnotations(source.annotations), ...written.annotations },
    }
    this.#descriptors.set(key, descriptor)
    this.layers.set(key, {
      sourceDigest: source.digest,
      sourceBytes: source.size,
      digest,
      bytes: written.size,
      layerBytes: written.toc.layerSize,
      entries: written.toc.entries.length,
      leaves,
      cid: file.cid,
      ...(written.chunkedObstacle === undefined
        ? {}
        : { chunkedObstacle: written.chunkedObstacle }),
      ...(recipients === undefined
        ? {}
        : { recipientKinds: [...new Set(recipients.map(({ kind }) => kind))] }),
    })
    return descriptor
  }

  /** Publishes a blob as it is: encrypted, foreign or no tar at all. */
  async #keep(blob: Descriptor, keptBecause: string): Promise<Descriptor> {
    if (this.layers.has(blob.digest)) return blob
    // Nondistributable layers are fetched from their URLs and usually are not in the source.
    if ((blob.urls?.length ?? 0) > 0) return blob
    const file = await importBlob(this.#blob(blob), 'kubo', this.#sink, this.#signal)
    this.directory.addBlob(blob.digest, file)
    this.layers.set(blob.digest, {
      sourceDigest: blob.digest,
      sourceBytes: blob.size,
      digest: blob.digest,
      bytes: blob.size,
      layerBytes: undefined,
      entries: undefined,
      leaves: undefined,
      cid: file.cid,
      keptBecause,
    })
    return blob
  }

  /** The bytes of a blob as they come, checked at the end, with progress. */
  async *#blob(descriptor: Descriptor): AsyncGenerator<Uint8Array, void> {
    const { digest, size: totalBytes } = descriptor
    const what = `blob ${digest}`
    const check = new DigestCheck(digest)
    let doneBytes = 0
    for await (const bytes of this.#image.blob(digest, this.#signal)) {
      if (this.#signal.aborted) throw new ImageError('CANCELLED', `reading ${what} was cancelled`)
      check.update(bytes)
      doneBytes += bytes.length
      this.#onProgress({ digest, doneBytes, totalBytes })
      yield bytes
    }
    check.verify(what)
  }

  async #bytes(descriptor: Descriptor, bytesMax: number): Promise<Uint8Array> {
    const pieces: Uint8Array[] = []
    let size = 0
    for await (const bytes of this.#blob(descriptor)) {
      size += bytes.length
      if (size > bytesMax) {
        const message = `blob ${descriptor.digest} has more than ${bytesMax} bytes, the limit for a manifest or config`
        throw new ImageError('RESOURCE_EXHAUSTED', message)
      }
      pieces.push(bytes)
    }
    return Buffer.concat(pieces)
  }

  #import(bytes: Uint8Array): Promise<ImportedNode> {
    const content = (async function* () {
      yield bytes
    })()
    return importBlob(content, 'kubo', this.#sink, this.#signal)
  }
}

/** What `source` yields and returns, with a call for each piece. */
async function* counting<Piece, Result>(
  source: AsyncGenerator<Piece, Result>,
  onPiece: () => void,
): AsyncGenerator<Piece, Result> {
  try {
    for (;;) {
      const step = await source.next()
      if (step.done === true) return step.value
      onPiece()
      yield step.value
    }
  } finally {
    await source[Symbol.asyncDispose]()
  }
}

function isImageConfig(mediaType: string): boolean {
  return mediaType === MEDIA_TYPES.ociConfig || mediaType === MEDIA_TYPES.dockerConfig
}

/** The descriptor without `ipfs://` addresses, as nerdctl writes them: what is written anew is elsewhere. */
function unaddressed(descriptor: Descriptor): Descriptor {
  const { urls = [], ...rest } = descriptor
  const others = urls.filter((url) => !url.startsWith('ipfs://'))
  return others.length === 0 ? rest : { ...rest, urls: others }
}

/** Why a layer must stay as it is; undefined if it is a tar that we can write anew. */
function layerObstacle({ mediaType, urls }: Descriptor): string | undefined {
  if (isEncrypted(mediaType)) return 'it is encrypted'
  if ((urls?.length ?? 0) > 0) return 'it may not be distributed'
  const isTar =
    /^application\/vnd\.oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+gzip|\+zstd)?$/.test(
      mediaType,
    ) ||
    /^application\/vnd\.docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.gzip|\.zstd)?$/.test(
      mediaType,
    ) ||
    mediaType === 'application/vnd.docker.container.image.rootfs.diff+x-gtar'
  return isTar ? undefined : `its media type ${mediaType} is no layer's`
}

/** Throws ImageError FAILED_PRECONDITION for a layer that would be published as it is, and is not encrypted already. */
function checkNotInPlain({ digest, mediaType, urls }: Descriptor, obstacle: string): void {
  // A layer that is fetched from its own URLs is not published at all.
  if (isEncrypted(mediaType) || (urls?.length ?? 0) > 0) return
  const message = `layer ${digest} cannot be encrypted: ${obstacle}`
  throw new ImageError('FAILED_PRECONDITION', message, { digest })
}

function isAttestation({ annotations = {} }: Descriptor): boolean {
  return ATTESTED_MANIFEST_ANNOTATION in annotations
}

/** Annotations about a source's compression or encryption would be lies about ours. */
function keptAnnotations(annotations: Descriptor['annotations']): Record<string, string> {
  const formats =
    /^(?:io\.github\.containers\.zstd-chunked|io\.containers\.zstd-chunked|containerd\.io\/snapshot|io\.ipdr\.layer|com\.amazon\.soci|org\.opencontainers\.image\.enc)\b/
  return Object.fromEntries(
    Object.entries(annotations ?? {}).filter(([name]) => !formats.test(name)),
  )
}

/** An attestation's descriptor, speaking of the manifest by its new digest. */
function attestingRenamed(manifest: Descriptor, renamed: ReadonlyMap<string, Digest>): Descriptor {
  const attested = manifest.annotations?.[ATTESTED_MANIFEST_ANNOTATION]
  const digest = attested === undefined ? undefined : renamed.get(attested)
  if (digest === undefined) return manifest
  return {
    ...manifest,
    annotations: { ...manifest.annotations, [ATTESTED_MANIFEST_ANNOTATION]: digest },
  }
}
