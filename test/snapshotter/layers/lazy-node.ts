import type { KeyObject } from 'node:crypto'
import { closeSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { BlockSource } from '../../../snapshotter/block-source.ts'
import type { ClusterPeers } from '../../../snapshotter/cluster-peers.ts'
import { PrivateKeys } from '../../../snapshotter/encryption/private-keys.ts'
import { mountLayerFiles } from '../../../snapshotter/fuse-connection.ts'
import type { ImageRegistries } from '../../../snapshotter/image-registries.ts'
import type { Mount } from '../../../snapshotter/snapshots/mounts.ts'
import { Snapshotter, type SnapshotterConfig } from '../../../snapshotter/snapshotter.ts'
import { TrustPolicies, type TrustPolicy } from '../../../snapshotter/trust.ts'
import type { SyncFile } from '../../../snapshotter/write-ahead-log.ts'
import { listeningLog } from '../../support/fuse-mount.ts'
import { mountAll } from '../../support/mount-all.ts'
import { Scratch } from '../../support/scratch.ts'
import type { PublishedImage } from './published-image.ts'

const { signal } = new AbortController()

/**
 * A snapshotter in this process, on a FUSE connection and in a folder of its own. `restart` is what a crash of the worker
 * looks like from here. What it shows must be read by other processes or asynchronously: this one answers the kernel.
 */
export class LazyNode implements AsyncDisposable {
  readonly scratch: Scratch
  readonly root: string
  readonly log: ReturnType<typeof listeningLog> = listeningLog()
  /** What failed a check, in order. */
  readonly verificationFailures: string[] = []
  /** Bytes that one layer gave to another. */
  reusedBytes = 0
  readonly #config: {
    mergeLayersMin: number
    storeBytesMax: number
    foregroundDeadlineMs: number
    mountsFrom?: NonNullable<SnapshotterConfig['mountsFrom']>
    fetchRest?: boolean
    pinned?: readonly string[]
  }
  /** Private keys that open layers; whoever changes it sees the change at the next read. */
  readonly keys: KeyObject[]
  readonly #registries: ImageRegistries | undefined
  /** Private keys that pods of a namespace may use. */
  readonly namespaceKeys: Map<string, readonly KeyObject[]> = new Map()
  /** Which images may run; who changes it starts the node again. */
  policies: readonly TrustPolicy[] = []
  /** Other nodes of the cluster; who changes it starts the node again. */
  peers: ClusterPeers | undefined
  /** How its databases get to disk; who changes it starts the node again. */
  sync: SyncFile | undefined
  readonly #fuse: { fd: number; dir: string } | undefined
  #snapshotter: Snapshotter | undefined
  #mounted = 0

  private constructor(scratch: Scratch, isLazy: boolean, options: NodeOptions) {
    const { keys = [], registries, onRoot, ...config } = options
    this.#registries = registries
    this.scratch = scratch
    this.keys = [...keys]
    this.root = join(scratch.dir, 'agent')
    const dir = join(scratch.run, 'files')
    for (const path of [this.root, dir]) mkdirSync(path, { recursive: true })
    onRoot?.(this.root, scratch.dir)
    this.#fuse = isLazy ? { fd: mountLayerFiles(dir), dir } : undefined
    this.#config = {
      mergeLayersMin: 24,
      storeBytesMax: 2 ** 34,
      foregroundDeadlineMs: 10_000,
      ...config,
    }
  }

  static async open(blocks: BlockSource, options: NodeOptions = {}): Promise<LazyNode> {
    const { isLazy = true, ...config } = options
    const node = new LazyNode(Scratch.open('layers'), isLazy, config)
    try {
      await node.start(blocks)
    } catch (error) {
      await node[Symbol.asyncDispose]()
      throw error
    }
    return node
  }

  get snapshotter(): Snapshotter {
    if (this.#snapshotter === undefined) throw new Error('the node does not run')
    return this.#snapshotter
  }

  /** Opens the snapshotter on what is there. */
  async start(blocks: BlockSource): Promise<void> {
    this.#snapshotter = await Snapshotter.open(
      {
        root: this.root,
        fuse: this.#fuse,
        fetchConcurrency: 8,
        readAheadKb: 128,
        ...this.#config,
      },
      {
        blocks,
        ...(this.#registries && { registries: this.#registries }),
        keys: {
          all: { unwrap: (wrapped, layer) => new PrivateKeys(this.keys).unwrap(wrapped, layer) },
          of: (namespace) => new PrivateKeys(this.namespaceKeys.get(namespace) ?? []),
        },
        trust: new TrustPolicies(this.policies, { onRefused: () => {} }),
        ...(this.peers && { peers: this.peers }),
        ...(this.sync && { sync: this.sync }),
        log: this.log,
        metrics: {
          readWaited: () => {},
          readFailed: () => {},
          verificationFailed: (what) => this.verificationFailures.push(what),
          reused: (bytes) => (this.reusedBytes += bytes),
        },
      },
    )
  }

  async stop(): Promise<void> {
    await this.#snapshotter?.[Symbol.asyncDispose]()
    this.#snapshotter = undefined
  }

  /** As containerd pulls: the manifest is served, then every layer is asked for by chain ID, bottom first. */
  async pull(image: PublishedImage): Promise<void> {
    await this.serve(image)
    await this.pullLayers(image)
  }

  /** As containerd asks for the layers of a manifest that it was served. */
  async pullLayers(image: PublishedImage): Promise<void> {
    let parent: string | undefined
    for (const chainId of image.chainIds) {
      if (this.has(chainId)) {
        parent = chainId
        continue
      }
      const prepared = await this.snapshotter.snapshots.prepare(
        {
          key: `extract-${chainId}`,
          parent,
          labels: new Map([['containerd.io/snapshot.ref', chainId]]),
        },
        signal,
      )
      if (prepared.kind !== 'committed') throw new Error(`${chainId} was not claimed`)
      parent = chainId
    }
  }

  async serve({ root, manifest, manifestDigest }: PublishedImage): Promise<void> {
    await this.snapshotter.manifestServed(
      {
        root,
        digest: manifestDigest,
        bytes: manifest,
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
      },
      signal,
    )
  }

  has(name: string): boolean {
    return [...this.snapshotter.snapshots.list([`name==${name}`])].flat().length > 0
  }

  /** The lower directories of a view of the image. */
  async view(image: PublishedImage): Promise<readonly Mount[]> {
    const key = `view-${this.#mounted++}`
    const snapshot = { key, parent: image.chainIds.at(-1), labels: new Map() }
    return this.snapshotter.snapshots.view(snapshot, signal)
  }

  /** Mounts a view of a pulled image. */
  async mount(image: PublishedImage): Promise<{ path: string } & AsyncDisposable> {
    const mounts = await this.view(image)
    const path = join(this.scratch.dir, `mount-${this.#mounted}`)
    mkdirSync(path)
    const mounted = await mountAll(mounts, path)
    return { path, [Symbol.asyncDispose]: () => mounted[Symbol.asyncDispose]() }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
    if (this.#fuse !== undefined) closeSync(this.#fuse.fd)
    await this.scratch[Symbol.asyncDispose]()
  }
}

type NodeOptions = {
  /** False: as on a kernel without EROFS or FUSE. */
  readonly isLazy?: boolean
  readonly mergeLayersMin?: number
  readonly storeBytesMax?: number
  readonly foregroundDeadlineMs?: number
  readonly mountsFrom?: 'files' | 'loops'
  readonly fetchRest?: boolean
  readonly pinned?: readonly string[]
  readonly keys?: readonly KeyObject[]
  readonly registries?: ImageRegistries
  /** Called before anything is written there, with a folder beside it. */
  readonly onRoot?: (root: string, beside: string) => void
}
