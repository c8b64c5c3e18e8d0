import { join } from 'node:path'
import type { FastifyPluginAsync } from 'fastify'
import type { CID } from 'multiformats/cid'
import type { BlockSource } from '../../snapshotter/block-source.ts'
import type { Log } from '../../snapshotter/log.ts'
import type { Config } from '../config.ts'
import { BlockSources, type BlockSourcesCollaborators } from '../ipfs/block-sources.ts'
import { BlockCache } from './block-cache.ts'
import { BlockHomes } from './block-homes.ts'
import { blockService, type Refusal } from './block-service.ts'
import { ClusterPeer } from './cluster-peer.ts'
import type { ClusterTls } from './cluster-tls.ts'
import { KeptBlocks } from './kept-blocks.ts'
import type { ClusterNames } from './own-address.ts'
import { UploadLimit } from './upload-limit.ts'

type Collaborators = {
  /** Gateways and bitswap. */
  readonly origin: BlockSource
  readonly tls: ClusterTls
  readonly log: Log
  readonly stop: AbortSignal
  /** Bytes of a block that came from another node; what comes from the origin is counted there. */
  readonly onBytes: (kind: 'cluster' | 'memory', bytes: number) => void
  readonly onServed: (bytes: number) => void
  readonly onRefused: (why: Refusal) => void
  /** Another node sent wrong bytes, or this one's disk kept them. */
  readonly onVerificationFailure: NonNullable<BlockSourcesCollaborators['onVerificationFailure']>
}

/** The blocks of a cluster: this node's own way to them, and what it answers the others. */
export class ClusterBlocks implements AsyncDisposable {
  readonly blocks: BlockSource
  /** Routes for the server that only nodes of the cluster can connect to. */
  readonly service: FastifyPluginAsync
  readonly #cache: BlockCache
  readonly #homes: BlockHomes
  /** One for an address, with this many connections. */
  readonly #connect: (url: string, connections: number) => ClusterPeer
  #peers: ReadonlyMap<string, ClusterPeer> = new Map()
  /** What is still on its way from those that are no peers any more. */
  readonly #leaving = new Set<ClusterPeer>()
  readonly #opened: AsyncDisposableStack

  private constructor(
    parts: Pick<ClusterBlocks, 'blocks' | 'service'> & {
      cache: BlockCache
      homes: BlockHomes
      connect: (url: string, connections: number) => ClusterPeer
    },
    opened: AsyncDisposableStack,
  ) {
    this.blocks = parts.blocks
    this.service = parts.service
    this.#cache = parts.cache
    this.#homes = parts.homes
    this.#connect = parts.connect
    this.#opened = opened
  }

  /** Keeps blocks below `root`. Rejects if that cannot be read. */
  static async open(
    names: ClusterNames,
    {
      root,
      blocks: limits,
    }: { readonly root: string; readonly blocks: Config['cluster']['blocks'] },
    { origin, tls, log, stop, ...told }: Collaborators,
  ): Promise<ClusterBlocks> {
    await using opened = new AsyncDisposableStack()
    const cache = opened.use(
      await BlockCache.open(join(root, 'cluster-blocks'), limits.cacheBytesMax, {
        log,
        onDamaged: (cid) => told.onVerificationFailure('the disk of this node', cid),
      }),
    )
    const kept = new KeptBlocks({ origin, cache })
    const keep = (cid: CID, block: Uint8Array): void => kept.keep(cid, block)
    const homes = new BlockHomes(kept)
    const connect = (url: string, connections: number): ClusterPeer =>
      new ClusterPeer(url, { tls, connections, keep, log })
    const blocks = new BlockSources((cid) => homes.orderFor(cid), {
      log,
      onBytes: (kind, bytes) => {
        if (kind === 'cluster' || kind === 'memory') told.onBytes(kind, bytes)
      },
      onVerificationFailure: told.onVerificationFailure,
    })
    const upload = new UploadLimit(limits.uploadBytesPerSecond)
    const { onServed, onRefused } = told
    const service = blockService(limits, { kept, upload, log, stop, onServed, onRefused })
    const parts = { blocks, service, cache, homes, connect }
    const shared = new ClusterBlocks(parts, opened.move())
    shared.follow(names)
    return shared
  }

  /** From now on the cluster is these. Blocks that are on their way from a node that is no longer in it still come. */
  follow({ self, others }: ClusterNames): void {
    const before = this.#peers
    const connections = connectionsEach(others.length)
    this.#peers = new Map(
      others.map((url) => [url, before.get(url) ?? this.#connect(url, connections)]),
    )
    this.#homes.follow(self, this.#peers)
    for (const [url, peer] of before) if (!this.#peers.has(url)) void this.#leave(peer)
  }

  /** What the blocks that are kept for others take on the disk. */
  get keptBytes(): number {
    return this.#cache.bytes
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const peers = [...this.#peers.values(), ...this.#leaving]
    await Promise.all(peers.map((peer) => peer[Symbol.asyncDispose]()))
    await this.#opened.disposeAsync()
  }

  async #leave(peer: ClusterPeer): Promise<void> {
    this.#leaving.add(peer)
    await peer.leave()
    this.#leaving.delete(peer)
  }
}

/** Blocks that a node has under way at once, over all others (ipfs/block-sources.ts), and one more for each, since they are not spread evenly. */
function connectionsEach(peers: number): number {
  return Math.min(8, Math.ceil(32 / peers) + 1)
}
