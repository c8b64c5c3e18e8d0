import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../../snapshotter/block-source.ts'
import { BlockError } from '../../snapshotter/errors.ts'
import {
  abortedGet,
  type BlockErrand,
  type BlockProvider,
  ProviderHealth,
} from '../ipfs/block-provider.ts'
import { whatWasSaid } from '../ipfs/block-race.ts'
import type { BlockCache } from './block-cache.ts'

/**
 * How long a block may take from the origin, in ms. 20 s: as long as one from a bitswap peer; those who asked then have ten of the
 * thirty seconds of a page fault to ask elsewhere.
 */
const FETCH_MS = 20_000

/** One fetch, for this node and for all that ask it. */
type Flight = { readonly block: Promise<Uint8Array>; readonly escalated: AbortController }

/**
 * What this node has of the blocks of the cluster, and what it fetches for it from the origin: gateways and bitswap, never
 * another agent, so that no request goes in circles. As a provider it is the origin to this node itself.
 */
export class KeptBlocks implements BlockProvider {
  readonly kind = 'origin'
  readonly name = 'this node'
  readonly health: ProviderHealth = new ProviderHealth()
  readonly #origin: BlockSource
  readonly #cache: BlockCache
  readonly #flights = new Map<string, Flight>()
  readonly #fetchMs: number

  constructor(
    { origin, cache }: { readonly origin: BlockSource; readonly cache: BlockCache },
    fetchMs: number = FETCH_MS,
  ) {
    this.#origin = origin
    this.#cache = cache
    this.#fetchMs = fetchMs
  }

  /** Whether the block is here, or on its way from the origin. */
  has(cid: CID): boolean {
    return this.sizeOf(cid) !== undefined || this.#flights.has(cid.toV1().toString())
  }

  /** How long the block is, if it is on the disk. */
  sizeOf(cid: CID): number | undefined {
    return this.#cache.sizeOf(cid)
  }

  /** A copy of the block, for this node. Rejects as `shared`. */
  async get(cid: CID, signal: AbortSignal, errand?: BlockErrand): Promise<Uint8Array> {
    const started = performance.now()
    const { priority = 'foreground', escalated } = errand ?? {}
    const request = { priority, signal, ...(escalated && { escalated }) }
    const block = await this.shared(cid, request)
    this.health.succeeded(performance.now() - started)
    return new Uint8Array(block)
  }

  /**
   * The block from the disk, or from the origin, in one fetch for all who ask. It belongs to all of them: nobody may change it.
   * Rejects with BlockError as a BlockSource does; a fetch goes on when they leave, since others of the cluster will come for it.
   */
  async shared(cid: CID, { priority, signal, escalated }: BlockRequest): Promise<Uint8Array> {
    if (signal.aborted) throw abortedGet(cid, signal)
    if (this.#cache.sizeOf(cid) !== undefined) {
      const kept = await this.#cache.get(cid)
      if (kept !== undefined) return kept
    }
    const flight = this.#flight(cid, priority)
    const escalate = (): void => flight.escalated.abort()
    if (priority === 'foreground' || escalated?.aborted === true) escalate()
    const left = Promise.withResolvers<never>()
    const leave = (): void => left.reject(abortedGet(cid, signal))
    escalated?.addEventListener('abort', escalate, { once: true })
    signal.addEventListener('abort', leave, { once: true })
    try {
      return await Promise.race([flight.block, left.promise])
    } finally {
      escalated?.removeEventListener('abort', escalate)
      signal.removeEventListener('abort', leave)
    }
  }

  /** Somebody in the foreground waits for it by now. */
  escalate(cid: CID): void {
    this.#flights.get(cid.toV1().toString())?.escalated.abort()
  }

  /** Keeps a copy of a block that came from elsewhere. */
  keep(cid: CID, block: Uint8Array): void {
    if (this.#cache.sizeOf(cid) === undefined) void this.#cache.put(cid, new Uint8Array(block))
  }

  #flight(cid: CID, priority: BlockRequest['priority']): Flight {
    const key = cid.toV1().toString()
    const going = this.#flights.get(key)
    if (going !== undefined) return going
    const escalated = new AbortController()
    const signal = AbortSignal.timeout(this.#fetchMs)
    const block = this.#fetch(cid, { priority, signal, escalated: escalated.signal })
    const flight = { block, escalated }
    this.#flights.set(key, flight)
    const land = (): boolean => this.#flights.delete(key)
    // Until it is on the disk, so that nobody finds it neither here nor there.
    block.then((bytes) => this.#cache.put(cid, bytes)).then(land, land)
    return flight
  }

  async #fetch(cid: CID, request: BlockRequest): Promise<Uint8Array> {
    try {
      return await this.#origin.get(cid, request)
    } catch (error) {
      if (!(error instanceof BlockError)) throw error
      throw new BlockError(error.code, whatWasSaid(cid, error), error.facts, error)
    }
  }
}
