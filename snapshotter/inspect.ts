import type { CID } from 'multiformats/cid'
import { z } from 'zod'
import type { BlockRequest, BlockSource } from './block-source.ts'
import type { ByteRange } from './byte-range.ts'
import { boundedParallel } from './dag/bounded-parallel.ts'
import type { IpfsImage } from './dag/ipfs-image.ts'
import { openIpfsImage } from './dag/open-ipfs-image.ts'
import { readImageConfig } from './dag/read-image-config.ts'
import { findSideIndex } from './dag/side-indexes.ts'
import type { UnixfsFile } from './dag/unixfs-file.ts'
import { LAYER_CIPHER } from './encryption/layer-cipher.ts'
import { isEncrypted, parseLayerEncryption } from './encryption/layer-encryption.ts'
import { CodedError, ImageError, LayerError } from './errors.ts'
import type { Digest } from './oci/digest.ts'
import { checkRunnable, type ImageManifest, parseManifest } from './oci/manifest.ts'
import { parseJson } from './oci/parse-json.ts'
import { formatPlatform, type Platform } from './oci/platform.ts'
import type { ImageReference } from './oci/reference.ts'
import { listTotals } from './prefetch/prefetch-list.ts'
import { readPublishedList } from './prefetch/published-list.ts'
import { fetchChunkedTables } from './toc/chunked/fetch-chunked-tables.ts'
import { joinChunkedTables } from './toc/chunked/join-chunked-tables.ts'
import { estargzLayer } from './toc/estargz/estargz-layer.ts'
import { fetchEstargzToc } from './toc/estargz/fetch-estargz-toc.ts'
import { LAYER_INDEX_ANNOTATION } from './toc/layer-index.ts'
import type { LayerToc } from './toc/layer-toc.ts'
import { readLayerIndex } from './toc/read-layer-toc.ts'
import { decodeSideIndex, type IndexedLayer } from './toc/side-index.ts'
import { SNIFF_BYTES, sniffCompression } from './toc/sniff-compression.ts'
import { CHUNKED_POSITION_ANNOTATION } from './toc/zstd-chunked.ts'

/** Layers looked at side by side. 8 × 16 inner nodes of 256 KiB at most: 32 MiB on their way. */
const LAYERS_AT_ONCE = 8

/** Whose table of contents a layer is read by; `side index`: ours, beside the image. */
export type LayerTable = 'ipdr' | 'side index' | 'zstd:chunked' | 'eStargz'

/** Whether a layer can be mounted before its bytes are here, and through what. */
export type LazyReading =
  /** A table of contents: an index of ours beside the image, or at the end of the blob, ours or what another tool wrote. */
  | {
      readonly kind: 'index'
      readonly table: LayerTable
      readonly entries: number
      readonly layerBytes: number
    }
  /** A plain tar: its headers are read where they lie. */
  | { readonly kind: 'headers' }
  /**
   * Ciphertext, whose key opens its table of contents too: `table` is the one that its annotations name, undefined if none. `kinds`
   * of recipients: `jwe`, `provider.<name>`, and those that this agent does not open.
   */
  | {
      readonly kind: 'encrypted'
      readonly table: 'ipdr' | 'zstd:chunked' | undefined
      readonly cipher: string
      readonly recipientKinds: readonly string[]
      /** Wrapped copies of its key: one a recipient. */
      readonly recipients: number
    }
  /** The layer is read whole before its first mount; `because` is a sentence. */
  | { readonly kind: 'none'; readonly because: string }

export type LayerInspection = {
  readonly digest: Digest
  readonly diffId: Digest | undefined
  /** Of the blob, as UnixFS file. */
  readonly cid: string
  readonly mediaType: string
  /** What the blob is by its content, whatever the media type says; of an encrypted one nothing else can be told. */
  readonly format: 'tar' | 'tar+gzip' | 'tar+zstd' | 'encrypted' | 'unknown'
  readonly blobBytes: number
  /** IPFS blocks that hold the blob's content: what can be fetched alone. */
  readonly leaves: number
  readonly lazy: LazyReading
}

/** What is there of a prefetch list, which says what a start of the image reads first. */
export type PrefetchInspection =
  /** Sizes are of layers, unpacked. */
  | {
      readonly kind: 'list'
      readonly ranges: number
      readonly files: number
      readonly bytes: number
    }
  | { readonly kind: 'none' }
  /** Nodes go without it; `because` is a sentence. */
  | { readonly kind: 'refused'; readonly because: string }

/** What an image runs, of its config (OCI image-spec, config.md). */
export type ConfigSummary = {
  readonly created: string | undefined
  readonly user: string | undefined
  readonly workingDir: string | undefined
  readonly entrypoint: readonly string[]
  readonly cmd: readonly string[]
  readonly env: readonly string[]
  readonly exposedPorts: readonly string[]
  readonly labels: Readonly<Record<string, string>>
}

export type ManifestInspection = {
  readonly digest: Digest
  /** "linux/amd64". */
  readonly platform: string
} & (
  | {
      readonly kind: 'image'
      readonly mediaType: string
      readonly config: ConfigSummary
      readonly layers: readonly LayerInspection[]
      readonly prefetch: PrefetchInspection
      /** Manifest, config and layers. */
      readonly totalBytes: number
    }
  /** An artifact (a signature, an attestation), or a platform that was not published: `because` is a sentence. */
  | { readonly kind: 'none'; readonly because: string }
)

/** What is known of an image without running it. */
export type ImageInspection = {
  /** CIDv1 of the image's directory. */
  readonly root: string
  /** Tag or digest that was looked up. */
  readonly selector: string
  readonly tags: readonly string[]
  /** Of the manifest, or of the index that lists several. */
  readonly digest: Digest
  readonly mediaType: string
  readonly manifests: readonly ManifestInspection[]
}

/**
 * Looks at an image: what it is, and how its layers can be read. Reads manifests, configs, tables of contents and the first
 * bytes of layers, each checked against its digest. Rejects with ImageError if there is none, and as BlockSource.get.
 */
export async function inspectImage(
  { root, selector }: ImageReference,
  { blocks, signal }: { readonly blocks: BlockSource; readonly signal: AbortSignal },
): Promise<ImageInspection> {
  const request = { priority: 'foreground', signal } as const
  const image = await openIpfsImage(root, blocks, request)
  const { bytes, digest, mediaType } = await image.manifest(selector, request)
  const found = parseManifest(bytes, `manifest ${selector} of ${root.toString()}`)
  const manifests: ManifestInspection[] = []
  if (found.kind === 'manifest') {
    const size = bytes.length
    manifests.push(await inspectManifest(image, found, { digest, size }, { blocks, request }))
  } else {
    for (const { digest, platform } of found.manifests) {
      manifests.push(await inspectEntry(image, { digest, platform }, { blocks, request }))
    }
  }
  const tags = await image.tags(request)
  return { root: root.toString(), selector, tags, digest, mediaType, manifests }
}

type Reading = { readonly blocks: BlockSource; readonly request: BlockRequest }

/** An entry of an index; one whose manifest was not published is no failure of the others. */
async function inspectEntry(
  image: IpfsImage,
  { digest, platform }: { readonly digest: Digest; readonly platform: Platform | undefined },
  { blocks, request }: Reading,
): Promise<ManifestInspection> {
  const named = { digest, platform: platform === undefined ? 'unknown' : formatPlatform(platform) }
  try {
    const { bytes } = await image.manifest(digest, request)
    const manifest = parseManifest(bytes, `manifest ${digest}`)
    if (manifest.kind === 'index') {
      return { ...named, kind: 'none', because: 'it is an index inside an index' }
    }
    const size = bytes.length
    return await inspectManifest(image, manifest, { digest, size }, { blocks, request })
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    if (error.code !== 'NOT_FOUND' && error.code !== 'FAILED_PRECONDITION') throw error
    return { ...named, kind: 'none', because: error.message }
  }
}

async function inspectManifest(
  image: IpfsImage,
  manifest: ImageManifest,
  { digest, size }: { readonly digest: Digest; readonly size: number },
  { blocks, request }: Reading,
): Promise<ManifestInspection> {
  checkRunnable(manifest, `manifest ${digest}`)
  const { platform, diffIds, config } = await readConfig(image, manifest, request)
  const layers: LayerInspection[] = []
  const bounds = { concurrency: LAYERS_AT_ONCE, signal: request.signal }
  await boundedParallel(manifest.layers.keys(), bounds, async (position, signal) => {
    const layer = manifest.layers[position]
    if (layer === undefined) return
    const blob = await image.blob(layer.digest, { ...request, signal })
    const read = isEncrypted(layer.mediaType)
      ? inspectEncryption(layer.annotations ?? {}, layer.digest)
      : await inspectBlob(blob, layer.annotations ?? {}, { ...request, signal })
    const diffId = diffIds[position] ?? layer.digest
    const named = { blobDigest: layer.digest, blobSize: blob.size, diffId }
    const reading = { blocks, request: { ...request, signal } }
    const lazy = await inspectSideIndex(image.root, named, read.lazy, reading)
    layers[position] = {
      digest: layer.digest,
      diffId: diffIds[position],
      cid: blob.cid.toV1().toString(),
      mediaType: layer.mediaType,
      blobBytes: blob.size,
      leaves: blob.leafCount,
      ...read,
      lazy,
    }
  })
  const layerBytes = layers.reduce((sum, { blobBytes }) => sum + blobBytes, 0)
  return {
    kind: 'image',
    digest,
    platform: formatPlatform(platform),
    mediaType: manifest.mediaType,
    config,
    layers,
    prefetch: await inspectPrefetch(image.root, digest, { blocks, request }),
    totalBytes: size + manifest.config.size + layerBytes,
  }
}

async function inspectPrefetch(
  root: CID,
  manifest: Digest,
  { blocks, request }: Reading,
): Promise<PrefetchInspection> {
  try {
    const list = await readPublishedList(root, manifest, blocks, request)
    if (list === undefined) return { kind: 'none' }
    return { kind: 'list', ranges: list.ranges.length, ...listTotals(list) }
  } catch (error) {
    if (!(error instanceof LayerError)) throw error
    return { kind: 'refused', because: error.message }
  }
}

/** What the annotations of an encrypted layer may name, in the order in which it is believed. */
const TABLE_ANNOTATIONS = [
  [LAYER_INDEX_ANNOTATION, 'ipdr'],
  [CHUNKED_POSITION_ANNOTATION, 'zstd:chunked'],
] as const

/** Not a byte is read: ciphertext says nothing, and its table of contents is part of it. */
function inspectEncryption(
  annotations: Readonly<Record<string, string>>,
  layer: Digest,
): Pick<LayerInspection, 'format' | 'lazy'> {
  const format = 'encrypted'
  try {
    const { recipientKinds, wrapped } = parseLayerEncryption(annotations, layer)
    const table = TABLE_ANNOTATIONS.find(([annotation]) => annotation in annotations)?.[1]
    const found = { table, cipher: LAYER_CIPHER, recipientKinds, recipients: wrapped.length }
    return { format, lazy: { kind: 'encrypted', ...found } }
  } catch (error) {
    if (!(error instanceof LayerError)) throw error
    return { format, lazy: { kind: 'none', because: error.message } }
  }
}

/** As the snapshotter decides it (layers/layer-builder.ts): an index of ours, another tool's, else what the first bytes are. */
async function inspectBlob(
  blob: UnixfsFile,
  annotations: Readonly<Record<string, string>>,
  request: BlockRequest,
): Promise<Pick<LayerInspection, 'format' | 'lazy'>> {
  const start = await blob.readRange({ start: 0, end: Math.min(SNIFF_BYTES, blob.size) }, request)
  let format: LayerInspection['format'] = 'unknown'
  try {
    const compression = sniffCompression(start)
    if (compression === 'tar') return { format: 'tar', lazy: { kind: 'headers' } }
    if (compression === 'unknown') {
      const because = 'it is neither tar nor gzip nor zstd: an encrypted or damaged layer'
      return { format, lazy: { kind: 'none', because } }
    }
    format = `tar+${compression}`
    const read = (range: ByteRange, signal: AbortSignal): Promise<Uint8Array> =>
      blob.readRange(range, { ...request, signal })
    const index = await readLayerIndex(annotations, read, blob.size, request.signal)
    if (index !== undefined) return { format, lazy: byTable('ipdr', index.toc) }
    const table =
      compression === 'gzip'
        ? await fetchEstargzToc(annotations, read, blob.size, request.signal)
        : undefined
    if (table !== undefined) {
      return { format, lazy: byTable('eStargz', estargzLayer(table, blob).toc) }
    }
    const tables =
      compression === 'zstd'
        ? await fetchChunkedTables(annotations, read, blob.size, request.signal)
        : undefined
    if (tables === undefined) {
      const because = `${compression} without a table of contents`
      return { format, lazy: { kind: 'none', because } }
    }
    const { toc } = await joinChunkedTables(tables, blob, request.signal)
    return { format, lazy: byTable('zstd:chunked', toc) }
  } catch (error) {
    if (!(error instanceof LayerError)) throw error
    return { format, lazy: { kind: 'none', because: error.message } }
  }
}

/** How a layer can be read that cannot be read lazily by itself: by an index beside the image, if there is one and it fits. */
async function inspectSideIndex(
  root: CID,
  layer: IndexedLayer,
  byItself: LazyReading,
  { blocks, request }: Reading,
): Promise<LazyReading> {
  if (byItself.kind !== 'none') return byItself
  const named = { digest: layer.blobDigest, size: layer.blobSize }
  try {
    const stored = await findSideIndex(root, named, blocks, request)
    if (stored === undefined) return byItself
    return byTable('side index', decodeSideIndex(stored, layer).toc)
  } catch (error) {
    if (request.signal.aborted || !(error instanceof CodedError)) throw error
    const because = `${byItself.because}, and the index beside the image cannot be used: ${error.message}`
    return { kind: 'none', because }
  }
}

function byTable(
  table: LayerTable,
  { entries, layerSize }: LayerToc,
): Extract<LazyReading, { kind: 'index' }> {
  return { kind: 'index', table, entries: entries.length, layerBytes: layerSize }
}

const strings = z
  .array(z.string())
  .nullish()
  .transform((value) => value ?? [])

const summarySchema = z.object({
  created: z.string().nullish(),
  config: z
    .object({
      User: z.string().nullish(),
      WorkingDir: z.string().nullish(),
      Entrypoint: strings,
      Cmd: strings,
      Env: strings,
      ExposedPorts: z.record(z.string(), z.unknown()).nullish(),
      Labels: z.record(z.string(), z.string()).nullish(),
    })
    .nullish(),
})

async function readConfig(
  image: IpfsImage,
  manifest: ImageManifest,
  request: BlockRequest,
): Promise<{ platform: Platform; diffIds: readonly Digest[]; config: ConfigSummary }> {
  const { platform, diffIds, bytes, what } = await readImageConfig(image, manifest, request)
  const { created, config } = parseJson(bytes, summarySchema, what)
  return {
    platform,
    diffIds,
    config: {
      created: created ?? undefined,
      user: config?.User || undefined,
      workingDir: config?.WorkingDir || undefined,
      entrypoint: config?.Entrypoint ?? [],
      cmd: config?.Cmd ?? [],
      env: config?.Env ?? [],
      exposedPorts: Object.keys(config?.ExposedPorts ?? {}),
      labels: config?.Labels ?? {},
    },
  }
}
