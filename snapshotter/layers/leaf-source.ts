import type { CID } from 'multiformats/cid'
import type { LayerBlob } from '../blobs/layer-blob.ts'
import type { LayerMap } from '../blobs/layer-map.ts'
import type { UnitSource } from '../blobs/layer-source.ts'
import type { BlockMemory, BlockRequest } from '../block-source.ts'

/** How long the list of leaves stays in memory after the last miss, in ms. Containers start in bursts of seconds. */
const LEAVES_KEPT_MS = 60_000

/** Fetches units of one layer from the leaves of its blob, whose list is on disk: a restart asks no peer for it. */
export class LeafSource implements UnitSource {
  readonly map: LayerMap
  readonly #open: () => Promise<LayerBlob>
  readonly #memory: BlockMemory
  #blob: Promise<LayerBlob> | undefined
  #forget: NodeJS.Timeout | undefined

  /** `open` finds the blob on this node, again whenever it was forgotten. Blocks are received in `memory`. */
  constructor(map: LayerMap, open: () => Promise<LayerBlob>, memory: BlockMemory) {
    this.map = map
    this.#open = open
    this.#memory = memory
  }

  async fetchUnit(unit: number, request: BlockRequest, into?: Uint8Array): Promise<Uint8Array> {
    const blob = await this.#leaves()
    const memory = this.#memory
    const part = await blob.readRange(this.map.blobRange(unit), { ...request, memory })
    const decoded = await this.map.decode(unit, part, into)
    // A unit that is stored as it is may be the part itself.
    if (decoded.buffer !== part.buffer) memory.giveBack(part)
    return decoded
  }

  /** The leaf that unit `unit` is made of; undefined if it is made of a part of one, or of several. */
  async leafOf(unit: number): Promise<CID | undefined> {
    return (await this.#leaves()).leafOf(this.map.blobRange(unit))
  }

  #leaves(): Promise<LayerBlob> {
    this.#blob ??= this.#openOnce()
    // Lists of all layers of a node would be tens of megabytes; those of containers that run warm are not needed.
    this.#forget ??= setTimeout(() => {
      this.#blob = undefined
      this.#forget = undefined
    }, LEAVES_KEPT_MS).unref()
    this.#forget.refresh()
    return this.#blob
  }

  async #openOnce(): Promise<LayerBlob> {
    try {
      return await this.#open()
    } catch (error) {
      this.#blob = undefined
      throw error
    }
  }
}
