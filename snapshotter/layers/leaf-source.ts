import type { CID } from 'multiformats/cid'
import type { LayerBlob } from '../blobs/layer-blob.ts'
import type { LayerMap } from '../blobs/layer-map.ts'
import type { UnitSource } from '../blobs/layer-source.ts'
import type { BlockRequest } from '../block-source.ts'

/** How long the list of leaves stays in memory after the last miss, in ms. Containers start in bursts of seconds. */
const LEAVES_KEPT_MS = 60_000

/** Fetches units of one layer from the leaves of its blob, whose list is on disk: a restart asks no peer for it. */
export class LeafSource implements UnitSource {
  readonly map: LayerMap
  readonly #open: () => Promise<LayerBlob>
  #blob: Promise<LayerBlob> | undefined
  #forget: NodeJS.Timeout | undefined

  /** `open` finds the blob on this node, again whenever it was forgotten. */
  constructor(map: LayerMap, open: () => Promise<LayerBlob>) {
    this.map = map
    this.#open = open
  }

  async fetchUnit(unit: number, request: BlockRequest, into?: Uint8Array): Promise<Uint8Array> {
    const blob = await this.#leaves()
    return this.map.decode(unit, await blob.readRange(this.map.blobRange(unit), request), into)
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
