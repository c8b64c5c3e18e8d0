import type { CID } from 'multiformats/cid'
import type {
  BlockRequest,
  BlockSource,
  FilePath,
  Priority,
  VerifiedBlock,
} from '../../snapshotter/block-source.ts'
import { CodedError } from '../../snapshotter/errors.ts'
import type { Log } from '../../snapshotter/log.ts'
import { inlineBlock } from '../../snapshotter/oci/verify-block.ts'
import {
  abortedGet,
  type BlockOrder,
  type BlockProvider,
  PRIORITY_RANK as RANK,
} from './block-provider.ts'
import { BlockRace } from './block-race.ts'

/** Blocks kept in memory, in bytes: directories, inner nodes and manifests of some 20 images at 200 KiB each, twice. */
const CACHE_BYTES_MAX: number = 8 * 1024 * 1024

/** Blocks up to this size are kept. Inner nodes with 174 links have 9 KiB, manifests a few. */
const CACHED_BLOCK_BYTES_MAX: number = 64 * 1024

/** Inner nodes are kept up to this size: 1,024 links of 50 bytes, four times over. */
const CACHED_NODE_BYTES_MAX: number = 256 * 1024

/** Blocks asked for at once, over all providers. 32 of 2 MiB are 64 MiB at worst; of 256 KiB, the usual, 8 MiB. */
const CONCURRENCY = 32

const DAG_PB = 0x70

export type BlockSourcesCollaborators = {
  readonly log: Log
  /** Bytes of a block that came, and where from. */
  readonly onBytes?: (kind: BlockProvider['kind'] | 'memory', bytes: number) => void
  /** A provider sent bytes that are not the block. It comes last for a while. */
  readonly onVerificationFailure?: (provider: string, cid: CID) => void
}

/** One fetch and all who wait for it. */
type Shared = {
  readonly key: string
  readonly race: Promise<Uint8Array>
  readonly stop: AbortController
  waiters: number
  /** The first to leave with the bytes owns them, the others get copies. */
  taken: boolean
  escalate(priority: Priority): void
}

/** Blocks from wherever they are: memory, then gateways, then bitswap peers, the quickest that has it. */
export class BlockSources implements BlockSource {
  readonly #orderFor: (cid: CID) => BlockOrder
  readonly #log: Log
  readonly #onBytes: NonNullable<BlockSourcesCollaborators['onBytes']>
  readonly #onVerificationFailure: BlockSourcesCollaborators['onVerificationFailure']
  readonly #shared = new Map<string, Shared>()
  readonly #slots = new PrioritySlots(CONCURRENCY)
  readonly #cache = new BlockCache(CACHE_BYTES_MAX)

  /** `providers` are ordered by how they do, or for each block by whoever gives them. */
  constructor(
    providers: readonly BlockProvider[] | ((cid: CID) => BlockOrder),
    { log, onBytes, onVerificationFailure }: BlockSourcesCollaborators,
  ) {
    this.#orderFor =
      typeof providers === 'function'
        ? providers
        : () => ({ first: quickestFirst(providers), spare: [] })
    this.#log = log
    this.#onBytes = onBytes ?? (() => undefined)
    this.#onVerificationFailure = onVerificationFailure
  }

  async get(cid: CID, request: BlockRequest): Promise<Uint8Array> {
    const { signal, escalated } = request
    const inline = inlineBlock(cid)
    if (inline !== undefined) return copyOf(inline)
    if (signal.aborted) throw abortedGet(cid, signal)
    const key = cid.toV1().toString()
    const cached = this.#cache.get(key)
    if (cached !== undefined) {
      this.#onBytes('memory', cached.length)
      return copyOf(cached)
    }
    const joined = this.#shared.get(key)
    const shared = joined ?? this.#start(cid, key, request)
    if (escalated?.aborted === true) shared.escalate('foreground')
    else joined?.escalate(request.priority)
    const escalate = (): void => shared.escalate('foreground')
    escalated?.addEventListener('abort', escalate, { once: true })
    return this.#wait(cid, shared, signal).finally(() =>
      escalated?.removeEventListener('abort', escalate),
    )
  }

  /** Of whom a block would be asked for first, if that one can. */
  async *along(
    path: FilePath,
    { signal }: BlockRequest,
  ): AsyncGenerator<VerifiedBlock, void, void> {
    const { root } = path
    const [provider] = this.#orderFor(root).first
    if (provider?.along === undefined || provider.health.standing !== 0) return
    try {
      for await (const block of provider.along(path, signal)) {
        this.#onBytes(provider.kind, block.bytes.length)
        yield block
      }
    } catch (error) {
      if (!(error instanceof CodedError)) throw error
      if (error.code === 'DATA_LOSS') this.#wrongBytes(provider, root, error)
      this.#log.debug(
        { provider: provider.name, cid: root.toString(), reason: error.message },
        'a file did not come in one piece; its blocks are asked for one by one',
      )
    }
  }

  async #wait(cid: CID, shared: Shared, signal: AbortSignal): Promise<Uint8Array> {
    const left = Promise.withResolvers<never>()
    const onAbort = (): void => {
      // The last to leave ends the race, which then knows whom it asked; the others need not wait for it.
      if (shared.waiters > 1) left.reject(abortedGet(cid, signal))
      else {
        this.#forget(shared)
        shared.stop.abort(signal.reason)
      }
    }
    signal.addEventListener('abort', onAbort, { once: true })
    shared.waiters++
    try {
      const bytes = await Promise.race([shared.race, left.promise])
      if (shared.taken) return copyOf(bytes)
      shared.taken = true
      return bytes
    } finally {
      shared.waiters--
      signal.removeEventListener('abort', onAbort)
    }
  }

  #start(cid: CID, key: string, { priority, memory }: BlockRequest): Shared {
    const stop = new AbortController()
    const slot = this.#slots.acquire(priority, stop.signal)
    let race: BlockRace | undefined
    const fetch = async (): Promise<Uint8Array> => {
      try {
        await slot.granted
      } catch {
        throw abortedGet(cid, stop.signal, 'it was still queued')
      }
      try {
        const request = { priority: slot.priority, signal: stop.signal, memory }
        race = new BlockRace(cid, this.#orderFor(cid), request, {
          won: (provider, bytes) => this.#onBytes(provider.kind, bytes),
          wrongBytes: (provider, error) => this.#wrongBytes(provider, cid, error),
        })
        const bytes = await race.run()
        // Whoever gives its memory back has put it on the disk.
        if (memory === undefined) this.#cache.add(key, cid.code, bytes)
        return bytes
      } finally {
        slot.release()
      }
    }
    const escalate = (higher: Priority): void => {
      slot.escalate(higher)
      if (higher === 'foreground') race?.escalate()
    }
    const shared = { key, race: fetch(), stop, waiters: 0, taken: false, escalate }
    const over = (): void => this.#forget(shared)
    shared.race.then(over, over)
    this.#shared.set(key, shared)
    return shared
  }

  /** Who asks from now on starts anew; another fetch may already have taken the place of this one. */
  #forget(shared: Shared): void {
    if (this.#shared.get(shared.key) === shared) this.#shared.delete(shared.key)
  }

  #wrongBytes(provider: BlockProvider, cid: CID, error: CodedError): void {
    this.#log.warn(
      { provider: provider.name, cid: cid.toString(), reason: error.message },
      'a provider sent bytes that are not the block; it is asked last from now on',
    )
    this.#onVerificationFailure?.(provider.name, cid)
  }
}

/** Those in good standing first, gateways before peers, then the quickest; one never asked counts as quick. */
function quickestFirst(providers: readonly BlockProvider[]): BlockProvider[] {
  const rank = ({ kind, health }: BlockProvider): number =>
    health.standing * 2 + (kind === 'gateway' ? 0 : 1)
  return providers.toSorted(
    (a, b) => rank(a) - rank(b) || (a.health.latencyMs ?? 0) - (b.health.latencyMs ?? 0),
  )
}

/** Not `slice`, which for a Buffer is another view of the same bytes. */
function copyOf(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(bytes)
}

/** Small blocks, the least recently used dropped first. */
class BlockCache {
  readonly #bytesMax: number
  readonly #blocks = new Map<string, Uint8Array>()
  #bytes = 0

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax
  }

  get(key: string): Uint8Array | undefined {
    const block = this.#blocks.get(key)
    if (block === undefined) return undefined
    this.#blocks.delete(key)
    this.#blocks.set(key, block)
    return block
  }

  add(key: string, codec: number, block: Uint8Array): void {
    const limit = codec === DAG_PB ? CACHED_NODE_BYTES_MAX : CACHED_BLOCK_BYTES_MAX
    if (block.length > limit || this.#blocks.has(key)) return
    this.#blocks.set(key, copyOf(block))
    this.#bytes += block.length
    for (const [oldest, { length }] of this.#blocks) {
      if (this.#bytes <= this.#bytesMax) break
      this.#blocks.delete(oldest)
      this.#bytes -= length
    }
  }
}

type Slot = {
  priority: Priority
  readonly granted: Promise<void>
  escalate(priority: Priority): void
  release(): void
}

/** A number of slots, given to whoever ranks highest, and then to whoever came first. */
class PrioritySlots {
  #free: number
  readonly #queue = new Set<{ slot: Slot; grant: () => void }>()

  constructor(slots: number) {
    this.#free = slots
  }

  acquire(priority: Priority, signal: AbortSignal): Slot {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    let held = false
    const slot: Slot = {
      priority,
      granted: promise,
      escalate: (higher) => {
        if (RANK[higher] < RANK[slot.priority]) slot.priority = higher
      },
      release: () => {
        if (!held) return
        held = false
        this.#free++
        this.#grantNext()
      },
    }
    const waiting = {
      slot,
      grant: () => {
        held = true
        this.#free--
        signal.removeEventListener('abort', leave)
        resolve()
      },
    }
    const leave = (): void => {
      if (this.#queue.delete(waiting)) reject(signal.reason)
    }
    signal.addEventListener('abort', leave, { once: true })
    this.#queue.add(waiting)
    this.#grantNext()
    return slot
  }

  #grantNext(): void {
    if (this.#free === 0) return
    let next: { slot: Slot; grant: () => void } | undefined
    for (const waiting of this.#queue) {
      if (next === undefined || RANK[waiting.slot.priority] < RANK[next.slot.priority])
        next = waiting
    }
    if (next === undefined) return
    this.#queue.delete(next)
    next.grant()
  }
}
