import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from './block-source.ts'
import { openIpfsImage } from './dag/open-ipfs-image.ts'
import { readImageConfig } from './dag/read-image-config.ts'
import { isEncrypted } from './encryption/layer-encryption.ts'
import { ImageError } from './errors.ts'
import type { Digest } from './oci/digest.ts'
import type { ImageConfig } from './oci/image-config.ts'
import { type ImageManifest, parseManifest } from './oci/manifest.ts'
import { formatPlatform } from './oci/platform.ts'
import type { ImageReference } from './oci/reference.ts'
import { listReads } from './prefetch/list-reads.ts'
import { placeRanges } from './prefetch/place-ranges.ts'
import { listTotals, type PrefetchList } from './prefetch/prefetch-list.ts'
import { addPublishedLists, readPublishedList } from './prefetch/published-list.ts'
import type { BlockSink } from './publish/import-image.ts'
import type { ImageStartReads } from './publish/push-image.ts'
import type { LayerToc } from './toc/layer-toc.ts'
import { readLayerIndex } from './toc/read-layer-toc.ts'

export {
  decodePrefetchList,
  encodePrefetchList,
  listTotals,
  type PrefetchList,
} from './prefetch/prefetch-list.ts'
export { addPublishedLists, readPublishedList } from './prefetch/published-list.ts'

/** A list that was taken over from another image. */
export type CarriedList = {
  /** "linux/amd64". */
  readonly platform: string
  readonly manifest: Digest
  readonly ranges: number
  readonly files: number
  readonly bytes: number
  /** Ranges whose files the new image does not have, or has in another size. */
  readonly dropped: number
}

type Parts = {
  readonly blocks: BlockSource
  readonly sink: BlockSink
  readonly signal: AbortSignal
}

/** The lists of an image by platform, "linux/amd64". Rejects with ImageError, LayerError (a list that lies), and as BlockSource.get. */
export async function prefetchListsOf(
  image: ImageReference,
  { blocks, signal }: Omit<Parts, 'sink'>,
): Promise<Map<string, PrefetchList>> {
  const request = { priority: 'foreground', signal } as const
  const lists = new Map<string, PrefetchList>()
  for (const { digest, platform } of await runnableManifests(image, blocks, request)) {
    const list = await readPublishedList(image.root, digest, blocks, request)
    if (list !== undefined) lists.set(platform, list)
  }
  return lists
}

/** The lists of an image by platform as `pushImage` wants them, so that it keeps what starts read apart from the rest. */
export function startReadsOf(lists: ReadonlyMap<string, PrefetchList>): ImageStartReads {
  return (layer, { platform, diffIds }) => {
    const list = lists.get(platform)
    return list && listReads(list, layer, diffIds)
  }
}

/**
 * Publishes an image again with the lists of another one beside it, platform by platform: files are looked up by path and size,
 * so an image that was built anew keeps what is known of its unchanged files. Resolves to the new root, which is the old one if no
 * list fits. Rejects with ImageError (FAILED_PRECONDITION if a layer is encrypted: lists name files in plain text), LayerError,
 * as BlockSource.get and as the sink.
 */
export async function carryPrefetchLists(
  lists: ReadonlyMap<string, PrefetchList>,
  image: ImageReference,
  { blocks, sink, signal }: Parts,
): Promise<{ root: CID; carried: CarriedList[] }> {
  const request = { priority: 'foreground', signal } as const
  const { root } = image
  const placed = new Map<Digest, PrefetchList>()
  const carried: CarriedList[] = []
  for (const target of await runnableManifests(image, blocks, request)) {
    const list = lists.get(target.platform)
    if (list === undefined) continue
    if (target.manifest.layers.some(({ mediaType }) => isEncrypted(mediaType))) {
      throw new ImageError(
        'FAILED_PRECONDITION',
        `image ${root.toString()} has encrypted layers, and a prefetch list beside it would name their files to everybody`,
      )
    }
    const tables = await tablesOf(target, list, { root, blocks, request })
    const { list: found, dropped } = placeRanges(list, tables)
    if (found.ranges.length === 0) continue
    const { digest: manifest, platform } = target
    placed.set(manifest, found)
    carried.push({ platform, manifest, ranges: found.ranges.length, ...listTotals(found), dropped })
  }
  if (placed.size === 0) return { root, carried }
  return { root: await addPublishedLists(root, placed, { blocks, sink, signal }), carried }
}

type RunnableManifest = {
  readonly digest: Digest
  readonly manifest: ImageManifest
  readonly platform: string
  readonly config: ImageConfig
}

/** The container images of a tag or digest, one a platform; what is not there or is none is passed over. */
async function runnableManifests(
  { root, selector }: ImageReference,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<RunnableManifest[]> {
  const image = await openIpfsImage(root, blocks, request)
  const read = async (reference: string): Promise<RunnableManifest[]> => {
    const { bytes, digest } = await image.manifest(reference, request)
    const found = parseManifest(bytes, `manifest ${reference} of ${root.toString()}`)
    if (found.kind === 'index') {
      const children: RunnableManifest[] = []
      for (const child of found.manifests) children.push(...(await orNone(read(child.digest))))
      return children
    }
    const config = await readImageConfig(image, found, request)
    return [{ digest, manifest: found, platform: formatPlatform(config.platform), config }]
  }
  return read(selector)
}

async function orNone<T>(found: Promise<T[]>): Promise<T[]> {
  try {
    return await found
  } catch (error) {
    if (error instanceof ImageError) return []
    throw error
  }
}

/** The layers with their tables of contents; one without an index of ours counts as empty, with the size that the list has. */
async function tablesOf(
  { manifest, config }: RunnableManifest,
  list: PrefetchList,
  { root, blocks, request }: { root: CID; blocks: BlockSource; request: BlockRequest },
): Promise<{ diffId: Digest; layerSize: number; toc: LayerToc }[]> {
  const image = await openIpfsImage(root, blocks, request)
  const tables = []
  for (const [position, { digest, annotations = {} }] of manifest.layers.entries()) {
    const blob = await image.blob(digest, request)
    const index = await readLayerIndex(
      annotations,
      (range, signal) => blob.readRange(range, { ...request, signal }),
      blob.size,
      request.signal,
    )
    const diffId = config.diffIds[position] ?? digest
    const layerSize = list.layers.find((layer) => layer.diffId === diffId)?.layerSize ?? 0
    const toc = index?.toc ?? { entries: [], layerSize }
    tables.push({ diffId, layerSize: toc.layerSize, toc })
  }
  return tables
}
