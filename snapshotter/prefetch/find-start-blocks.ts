import type { CID } from 'multiformats/cid'
import { unitAt } from '../blobs/shared-units.ts'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { openIpfsImage } from '../dag/open-ipfs-image.ts'
import { readImageConfig } from '../dag/read-image-config.ts'
import type { UnixfsFile } from '../dag/unixfs-file.ts'
import type { Descriptor } from '../oci/descriptor.ts'
import { type Digest } from '../oci/digest.ts'
import { parseManifest } from '../oci/manifest.ts'
import { readLayerIndex } from '../toc/read-layer-toc.ts'
import type { ZstdLayerMap } from '../toc/zstd-layer-map.ts'
import { placeRanges } from './place-ranges.ts'
import type { ListedLayer, PrefetchList } from './prefetch-list.ts'
import { START_BLOCKS_MAX, type StartBlock } from './start-blocks-list.ts'

type Parts = { readonly blocks: BlockSource; readonly request: BlockRequest }

/**
 * The blocks of an image that a start with this prefetch list wants, in the order in which a node comes to ask for them: manifest and
 * config, what opens the layers, then the leaves of what the list names. Layers without an index of `ipdr push` have
 * no leaves here. Rejects as `openIpfsImage`, `readLayerIndex` and BlockSource.get.
 */
export async function findStartBlocks(
  { root, manifest }: { readonly root: CID; readonly manifest: Digest },
  list: PrefetchList,
  { blocks, request }: Parts,
): Promise<StartBlock[]> {
  // What an image asks for when it is opened and read is what it will ask for on a node.
  const asked = new AskedBlocks(blocks)
  const image = await openIpfsImage(root, asked, request)
  asked.take()
  const name = `manifest ${manifest} of ${root.toString()}`
  const parsed = parseManifest((await image.manifest(manifest, request)).bytes, name)
  if (parsed.kind === 'index') return []
  const { diffIds } = await readImageConfig(image, parsed, request)
  const found = new Map<string, StartBlock>()
  const add = (block: StartBlock): void => {
    const key = block.cid.toString()
    if (!found.has(key) && found.size < START_BLOCKS_MAX) found.set(key, block)
  }
  for (const cid of asked.take()) add({ cid })
  const layers: OpenedLayer[] = []
  for (const [position, descriptor] of parsed.layers.entries()) {
    const blob = await image.blob(descriptor.digest, request)
    const map = await layerMap(blob, descriptor, request)
    for (const cid of asked.take()) add({ cid, opens: blob.cid })
    const diffId = diffIds[position] ?? descriptor.digest
    layers.push({ diffId, layerSize: map?.layerSize ?? 0, blob, map })
  }
  for (const { layer, start, end } of placeRanges(list, layers).ranges) {
    for (const cid of leavesOf(layers[layer], start, end)) add({ cid })
  }
  return [...found.values()]
}

type OpenedLayer = ListedLayer & {
  readonly blob: UnixfsFile
  readonly map: ZstdLayerMap | undefined
}

async function layerMap(
  blob: UnixfsFile,
  { annotations = {} }: Descriptor,
  request: BlockRequest,
): Promise<ZstdLayerMap | undefined> {
  const index = await readLayerIndex(
    annotations,
    (range, signal) => blob.readRange(range, { ...request, signal }),
    blob.size,
    request.signal,
  )
  return index?.map
}

/** The leaves that hold these bytes of a layer. */
function* leavesOf(layer: OpenedLayer | undefined, start: number, end: number): Generator<CID> {
  const { blob, map } = layer ?? {}
  if (blob === undefined || map === undefined || end > map.layerSize) return
  for (let unit = unitAt(map, start); unit <= unitAt(map, end - 1); unit++) {
    const range = map.blobRange(unit)
    const last = blob.leafAt(range.end - 1)
    for (let leaf = blob.leafAt(range.start); leaf <= last; leaf++) yield blob.leafCid(leaf)
  }
}

/** Notes which blocks are asked for. */
class AskedBlocks implements BlockSource {
  readonly #blocks: BlockSource
  #asked: CID[] = []

  constructor(blocks: BlockSource) {
    this.#blocks = blocks
  }

  get(cid: CID, request: BlockRequest): Promise<Uint8Array> {
    this.#asked.push(cid)
    return this.#blocks.get(cid, request)
  }

  /** Those since it was asked last. */
  take(): CID[] {
    const asked = this.#asked
    this.#asked = []
    return asked
  }
}
