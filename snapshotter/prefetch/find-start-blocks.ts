import type { CID } from 'multiformats/cid'
import { unitAt } from '../blobs/shared-units.ts'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { openIpfsImage } from '../dag/open-ipfs-image.ts'
import { readImageConfig } from '../dag/read-image-config.ts'
import type { UnixfsFile } from '../dag/unixfs-file.ts'
import { DAG_PB } from '../dag/unixfs-node.ts'
import type { Descriptor } from '../oci/descriptor.ts'
import { type Digest } from '../oci/digest.ts'
import { parseManifest } from '../oci/manifest.ts'
import { readLayerIndex } from '../toc/read-layer-toc.ts'
import type { ZstdLayerMap } from '../toc/zstd-layer-map.ts'
import { placeRanges } from './place-ranges.ts'
import type { ListedLayer, PrefetchList } from './prefetch-list.ts'
import { START_BLOCKS_MAX, type StartBlock } from './start-blocks-list.ts'
import { fittingNodes, type StartNode } from './start-nodes.ts'

type Parts = { readonly blocks: BlockSource; readonly request: BlockRequest }

/** What an image's start wants. */
export type Start = {
  /** Small blocks that lead to others, with their bytes. */
  readonly nodes: readonly StartNode[]
  /** The others. */
  readonly blocks: readonly StartBlock[]
}

/**
 * What a start with this prefetch list wants of an image, in the order in which a node comes to ask for it: manifest and config,
 * what opens the layers, then the leaves of what the list names. Layers without an index of `ipdr push` have no leaves
 * here. Rejects as `openIpfsImage`, `readLayerIndex` and BlockSource.get.
 */
export async function findStartBlocks(
  { root, manifest }: { readonly root: CID; readonly manifest: Digest },
  list: PrefetchList,
  { blocks, request }: Parts,
): Promise<Start> {
  // What an image asks for when it is opened and read is what it will ask for on a node.
  const asked = new AskedBlocks(blocks)
  const image = await openIpfsImage(root, asked, request)
  asked.take()
  const name = `manifest ${manifest} of ${root.toString()}`
  const parsed = parseManifest((await image.manifest(manifest, request)).bytes, name)
  if (parsed.kind === 'index') return { nodes: [], blocks: [] }
  const { diffIds } = await readImageConfig(image, parsed, request)
  const found = new Map<string, StartBlock>()
  const add = (block: StartBlock): void => {
    const key = block.cid.toString()
    if (!found.has(key) && found.size < START_BLOCKS_MAX) found.set(key, block)
  }
  const nodes = new Map<string, Opening>()
  for (const node of asked.take()) nodes.set(node.cid.toString(), node)
  const layers: OpenedLayer[] = []
  for (const [position, descriptor] of parsed.layers.entries()) {
    const blob = await image.blob(descriptor.digest, request)
    const map = await layerMap(blob, descriptor, request)
    for (const node of asked.take()) {
      if (node.cid.code === DAG_PB) nodes.set(node.cid.toString(), { ...node, opens: blob.cid })
      else add({ cid: node.cid, opens: blob.cid })
    }
    const diffId = diffIds[position] ?? descriptor.digest
    layers.push({ diffId, layerSize: map?.layerSize ?? 0, blob, map })
  }
  for (const { layer, start, end } of placeRanges(list, layers).ranges) {
    for (const cid of leavesOf(layers[layer], start, end)) add({ cid })
  }
  const all = [...nodes.values()]
  const fitting = fittingNodes(all)
  const others = all.slice(fitting).map(({ cid, opens }) => ({ cid, ...(opens && { opens }) }))
  return { nodes: all.slice(0, fitting), blocks: [...others, ...found.values()] }
}

type Opening = StartNode & { readonly opens?: CID }

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
  #asked: StartNode[] = []

  constructor(blocks: BlockSource) {
    this.#blocks = blocks
  }

  async get(cid: CID, request: BlockRequest): Promise<Uint8Array> {
    const bytes = await this.#blocks.get(cid, request)
    this.#asked.push({ cid, bytes })
    return bytes
  }

  /** Those since it was asked last. */
  take(): StartNode[] {
    const asked = this.#asked
    this.#asked = []
    return asked
  }
}
