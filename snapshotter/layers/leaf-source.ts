import { readFile } from 'node:fs/promises'
import type { CID } from 'multiformats/cid'
import type { LayerMap } from '../blobs/layer-map.ts'
import type { UnitSource } from '../blobs/layer-source.ts'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { UnixfsFile } from '../dag/unixfs-file.ts'

/** How long the list of leaves stays in memory after the last miss, in ms. Containers start in bursts of seconds. */
const LEAVES_KEPT_MS = 60_000

/** Fetches units of one layer from the leaves of its blob, whose list is on disk: a restart asks no peer for it. */
export class LeafSource implements UnitSource {
  readonly map: LayerMap
  readonly #leavesPath: string
  readonly #blocks: BlockSource
  #blob: Promise<UnixfsFile> | undefined
  #forget: NodeJS.Timeout | undefined

  constructor(leavesPath: string, map: LayerMap, blocks: BlockSource) {
    this.#leavesPath = leavesPath
    this.map = map
    this.#blocks = blocks
  }

  async fetchUnit(unit: number, request: BlockRequest): Promise<Uint8Array> {
    const blob = await this.#leaves()
    return this.map.decode(unit, await blob.readRange(this.map.blobRange(unit), request))
  }

  /** The leaf that unit `unit` is made of; undefined if it is made of a part of one, or of several. */
  async leafOf(unit: number): Promise<CID | undefined> {
    const { start, end } = this.map.blobRange(unit)
    const blob = await this.#leaves()
    const leaf = blob.leafAt(start)
    const isWhole = blob.leafStarts[leaf] === start && blob.leafStarts[leaf + 1] === end
    return isWhole ? blob.leafCid(leaf) : undefined
  }

  #leaves(): Promise<UnixfsFile> {
    this.#blob ??= this.#readLeaves()
    // Lists of all layers of a node would be tens of megabytes; those of containers that run warm are not needed.
    this.#forget ??= setTimeout(() => {
      this.#blob = undefined
      this.#forget = undefined
    }, LEAVES_KEPT_MS).unref()
    this.#forget.refresh()
    return this.#blob
  }

  async #readLeaves(): Promise<UnixfsFile> {
    try {
      return UnixfsFile.fromBytes(await readFile(this.#leavesPath), this.#blocks)
    } catch (error) {
      this.#blob = undefined
      throw error
    }
  }
}
