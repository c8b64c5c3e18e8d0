import type { CID } from 'multiformats/cid'
import { BlobStore } from './blobs/blob-store.ts'
import { DEFAULT_FETCH_LIMITS, FetchQueue } from './blobs/fetch-queue.ts'
import type { Fetched, LazyLayer } from './blobs/lazy-layer.ts'
import type { BlockSource, Priority } from './block-source.ts'
import type { ClusterPeers } from './cluster-peers.ts'
import { type ContainerName, containersOn } from './containers-on-mounts.ts'
import { IpfsImageDirectory } from './dag/ipfs-image-directory.ts'
import { type KeyRing, NO_KEYS } from './encryption/key-ring.ts'
import { isEncrypted } from './encryption/layer-encryption.ts'
import { type KernelReport, probeKernel } from './erofs/probe-kernel.ts'
import { CodedError, ImageError, LayerError } from './errors.ts'
import { FuseServer } from './fuse/fuse-server.ts'
import type { ImageRegistries } from './image-registries.ts'
import type { ImagesOfNode } from './images-of-node.ts'
import { keptBlobInRegistry } from './layers/blob-in-registry.ts'
import { Catalog, type ImageRecord, type LayerRecord } from './layers/catalog.ts'
import { DiskCheck } from './layers/disk-check.ts'
import { Images } from './layers/images.ts'
import { KnownIndexes } from './layers/known-indexes.ts'
import { LayerBuilder } from './layers/layer-builder.ts'
import { LayerDevices } from './layers/layer-devices.ts'
import { LayerKeys } from './layers/layer-keys.ts'
import { LayerMounts, type LazyMount, type MountedFrom } from './layers/layer-mounts.ts'
import { fuseInode, layerOfInode, layerPlaces } from './layers/layer-places.ts'
import { type CheckedLayer, type LayerServer, Layers, type StartListener } from './layers/layers.ts'
import { type PinnedImages, pinnedLayers } from './layers/pinned-layers.ts'
import { RegistryImages } from './layers/registry-images.ts'
import { RestFetcher } from './layers/rest-fetcher.ts'
import { SharedLeaves } from './layers/shared-leaves.ts'
import { TableThread } from './layers/table-thread.ts'
import { type WaitedRead, WaitedReads } from './layers/waited-reads.ts'
import type { Log } from './log.ts'
import type { Digest } from './oci/digest.ts'
import { IMAGE_HOST, parseImageReference } from './oci/reference.ts'
import { parseRegistryReference } from './oci/registry-reference.ts'
import { ImageRecording } from './prefetch/image-recording.ts'
import { encodePrefetchList } from './prefetch/prefetch-list.ts'
import { PREFETCH_ALL, type PrefetchConfig, Prefetcher } from './prefetch/prefetcher.ts'
import { StartBlocks } from './prefetch/start-blocks.ts'
import { StartRecorder } from './prefetch/start-recorder.ts'
import type { PublishedBlobs } from './published-blobs.ts'
import type { ImageDirectory, ServedManifest } from './registry-service.ts'
import { setAsideDamaged } from './set-aside-damaged.ts'
import { Snapshots } from './snapshots/snapshots.ts'
import { zstdLibrary } from './toc/zstd-library.ts'
import { TrustPolicies } from './trust/trust-policies.ts'
import type { SyncFile } from './write-ahead-log.ts'

export type { KernelReport } from './erofs/probe-kernel.ts'
export type { ImageRecord, LayerRecord } from './layers/catalog.ts'
export type { LazyMount } from './layers/layer-mounts.ts'
export type { WaitedRead } from './layers/waited-reads.ts'
export type { ImageRecording, RecordedList } from './prefetch/image-recording.ts'

export type SnapshotterConfig = {
  /** Everything that survives a reboot. */
  readonly root: string
  /** The open and mounted /dev/fuse, and where it is mounted. Undefined: nothing is mounted lazily. */
  readonly fuse: { readonly fd: number; readonly dir: string } | undefined
  readonly storeBytesMax: number
  /** Images of which nothing is ever taken from the store: root CIDs (CIDv1), and names of images in registries. */
  readonly pinned?: readonly string[]
  readonly fetchConcurrency: number
  readonly foregroundDeadlineMs: number
  readonly mergeLayersMin: number
  readonly readAheadKb: number
  /**
   * What the kernel mounts layers from. `auto` unless given: loop devices while bytes are missing, so that containers that run can be
   * turned to the plain file once all are here, else the files. `files`: those always, which is faster, and such containers need the
   * agent as long as they live. `loops`: always, as on a kernel before 6.12, which has nothing else.
   */
  readonly mountsFrom?: 'auto' | 'files' | 'loops'
  /** What is done with prefetch lists; all of it unless given. */
  readonly prefetch?: PrefetchConfig
  /** Fetch the rest of an image, behind all else, once a container of it starts. */
  readonly fetchRest?: boolean
  /** Roots of side indexes that the operator vouches for, for layers of images in registries; CIDv1. */
  readonly indexRoots?: readonly string[]
}

/** How long a stop waits for reads that wait for bytes; then the next agent gets them. 5 s: others are given 20 s for all of a stop. */
const STOP_LONGEST_MS = 5_000

/** What the snapshotter tells whoever counts. */
export type SnapshotterMetrics = {
  readWaited(waitedMs: number): void
  readFailed(code: string): void
  verificationFailed(what: 'layer' | 'toc'): void
  /** Bytes of a layer that another layer of this node had, so that they were not fetched. */
  reused(bytes: number): void
}

type Collaborators = {
  readonly blocks: BlockSource
  /** Opens the keys of encrypted layers. Without it they cannot be read. */
  readonly keys?: KeyRing
  /** Images that lie in registries. Without it they are downloaded whole by containerd. */
  readonly registries?: ImageRegistries
  /** Ends the container that has an active snapshot; by default containers only get EIO. */
  readonly endContainer?: (snapshotKey: string) => Promise<void>
  /** Told of containers that run on layers whose bytes nobody can give them any more; by default nobody is. */
  readonly onLost?: (containers: readonly ContainerName[]) => void
  /** Asked for images whose snapshots were lost here; by default nobody. */
  readonly imagesOfNode?: ImagesOfNode
  /** Other nodes of the cluster; by default none. */
  readonly peers?: ClusterPeers
  /** Which images may run; by default all. */
  readonly trust?: TrustPolicies
  /** Brings what its databases have committed to disk; by default fdatasync(2). */
  readonly sync?: SyncFile
  readonly log: Log
  readonly metrics: SnapshotterMetrics
}

/** A layer, with what is on this node of it. */
export type LayerStatus = LayerRecord & {
  readonly presentBytes: number
  readonly isComplete: boolean
  readonly isMounted: boolean
  /** Whether it is of a pinned image. */
  readonly isPinned: boolean
}

/** What the kernel asked for since this process started. */
export type ReadCounters = {
  readonly requests: ReadonlyMap<string, number>
  /** Bytes answered from this node's disk. */
  readonly servedBytes: number
  readonly misses: number
  readonly failures: number
}

/**
 * Everything between an image on IPFS and a mount: snapshots for containerd, images for the registry, lazy layers, their
 * bytes and their mounts. Several may be open in one process, on roots and FUSE connections of their own.
 */
export class Snapshotter implements AsyncDisposable {
  /** What containerd calls. */
  readonly snapshots: Snapshots
  /** The images that the registry serves. */
  readonly directory: ImageDirectory
  /** Which step of the kernel ladder this node stands on. */
  readonly kernel: KernelReport
  /** Rejects if the kernel can no longer be answered, or the disk does not take what is written: the process must end, and begin anew. */
  readonly failed: Promise<never>
  readonly #parts: Parts
  readonly #opened: AsyncDisposableStack

  private constructor(
    faces: { snapshots: Snapshots; kernel: KernelReport },
    parts: Parts,
    opened: AsyncDisposableStack,
  ) {
    this.snapshots = faces.snapshots
    this.directory = new IpfsImageDirectory(parts.blocks, parts.announce)
    this.kernel = faces.kernel
    this.failed = failureOf(parts, faces.snapshots)
    this.#parts = parts
    this.#opened = opened
  }

  /**
   * Opens what an agent before left under `root` and starts to answer the kernel; needs no network. Rejects if the root is in
   * use, on a full disk, or if it was written by a newer agent.
   */
  static async open(
    config: SnapshotterConfig,
    {
      blocks: origin,
      keys = NO_KEYS,
      registries,
      endContainer,
      onLost = () => {},
      imagesOfNode,
      peers,
      trust = new TrustPolicies([], { onRefused: () => {} }),
      sync,
      log,
      metrics,
    }: Collaborators,
  ): Promise<Snapshotter> {
    await using opened = new AsyncDisposableStack()
    const closing = new AbortController()
    opened.defer(() => closing.abort())
    const kernel = await probeKernel(config.root)
    const isLazy = kernel.rung !== 'none' && config.fuse !== undefined
    if (isLazy) log.info({ rung: kernel.rung }, `layers are mounted lazily: ${kernel.reason}`)
    else {
      log.warn(
        { rung: kernel.rung },
        `layers are not mounted lazily, images are downloaded whole and unpacked: ${kernel.reason}`,
      )
    }
    setAsideDamaged(config.root, log)
    const places = layerPlaces(config.root, config.fuse?.dir ?? '')
    const catalog = opened.use(new Catalog(`${config.root}/catalog.db`, { sync }))
    const queue = new FetchQueue<Fetched>({
      ...DEFAULT_FETCH_LIMITS,
      total: config.fetchConcurrency,
      prefetch: shareOf(config.fetchConcurrency, 3, DEFAULT_FETCH_LIMITS.prefetch),
      background: shareOf(config.fetchConcurrency, 1, DEFAULT_FETCH_LIMITS.background),
      deadlineMs: { ...DEFAULT_FETCH_LIMITS.deadlineMs, foreground: config.foregroundDeadlineMs },
    })
    const prefetch = config.prefetch ?? PREFETCH_ALL
    const pinned = new Set(config.pinned)
    const waited = new WaitedReads((layer) => builder.toc(layer))
    const store = opened.use(
      await BlobStore.open(
        { root: `${config.root}/layers`, bytesMax: config.storeBytesMax },
        {
          queue,
          log,
          onWait: (wait) => {
            waited.add(wait)
            metrics.readWaited(wait.durationMs)
            if (wait.error !== undefined) metrics.readFailed(codeOf(wait.error))
          },
          onMostRead: ({ inode }) => {
            const record = catalog.layer(layerOfInode(inode))
            if (record !== undefined) rest.add([record])
          },
          onComplete: (held) => layers.completed(held),
          pinned: () => new Set([...pinnedLayers(catalog, pinned)].map(fuseInode)),
        },
      ),
    )
    const shared = opened.use(
      new SharedLeaves(`${config.root}/shared-leaves.db`, {
        store,
        log,
        onReuse: (bytes) => metrics.reused(bytes),
      }),
    )
    const starts = opened.use(
      new StartBlocks({
        blocks: origin,
        isOpen: (blob) => catalog.layerByBlob(blob.toV1().toString())?.state === 'ready',
        isHere: (leaf) => shared.isHere(leaf),
        log,
      }),
    )
    const blocks: BlockSource = starts
    const tables = opened.use(new TableThread())
    // It takes 10 ms: not in the first pull.
    zstdLibrary()
    // Beside the round trips in which a pull finds out what it wants.
    const announce = (root: CID, manifest?: Digest): void => {
      if (catalog.isPulled(root.toV1().toString())) return
      tables.warm()
      if (prefetch.replay) starts.begin(root, manifest)
    }
    const builder = new LayerBuilder(
      { places, layerBytesMax: config.storeBytesMax },
      {
        catalog,
        registries,
        store,
        blocks,
        log,
        tables,
        shared,
        peers,
        keys: new LayerKeys(keys, (blobCid) =>
          catalog.imageLayers(blobCid).filter(({ mediaType }) => isEncrypted(mediaType)),
        ),
      },
    )
    const mounts = new LayerMounts(
      {
        places,
        mergeLayersMin: config.mergeLayersMin,
        readAheadKb: config.readAheadKb,
        ...(await mountedFrom(config, { kernel, log })),
      },
      {
        store,
        log,
        tables,
        devices: new LayerDevices({ root: config.root, places }, (layer) => {
          const record = catalog.layer(layer)
          const layerSize = store.get(fuseInode(layer))?.file.map.layerSize
          if (record === undefined || layerSize === undefined) return undefined
          return { blobCid: record.blobCid, format: record.format, layerSize }
        }),
        isVerified: (layer) => catalog.layer(layer)?.verified ?? false,
        signal: closing.signal,
      },
    )
    const describe = async (inode: number, offset: number): Promise<string> => {
      const layer = layerOfInode(inode)
      // Before anything is waited for: reads also fail because all of this is being closed.
      const digest = catalog.layer(layer)?.blobDigest ?? `layer ${layer}`
      return `${(await waited.pathAt(layer, offset)) ?? 'bytes between files'} (layer ${digest})`
    }
    const fuse =
      isLazy && config.fuse !== undefined
        ? new FuseServer(
            { deviceFd: config.fuse.fd },
            { source: store, memory: store.memory, log, describe },
          )
        : undefined
    const recorder =
      fuse &&
      new StartRecorder({
        trace: fuse.trace,
        layerOf: layerOfInode,
        waiting: () => fuse.counters().waiting,
        now: () => performance.now(),
      })
    const prefetcher = opened.use(
      await Prefetcher.open(
        {
          dir: places.prefetchDir,
          storeBytesMax: config.storeBytesMax,
          ...prefetch,
        },
        { catalog, store, blocks, tables, places, recorder, peers, log },
      ),
    )
    const indexes = new KnownIndexes(config.indexRoots ?? [], { blocks, log })
    const registryImages =
      registries && new RegistryImages({ catalog, registries, indexes, trust, log })
    const images = new Images({
      catalog,
      blocks,
      trust,
      onManifest: announce,
      log,
    })
    const rest: RestFetcher = new RestFetcher(
      { bytesMax: config.storeBytesMax },
      { store, log, fetchWhole: (record, signal) => layers.fetchWhole(record, signal) },
    )
    const disk = new DiskCheck({ places, store, builder, mounts, log })
    const layers: Layers = opened.use(
      new Layers({
        catalog,
        store,
        builder,
        mounts,
        shared,
        disk,
        registryImages,
        server: fuse && layerServer(fuse),
        log,
        remembered: async (layerChainId, signal) =>
          (await imagesOfNode?.imagesWith(layerChainId, signal)) ?? [],
        resolve: async ({ reference }, signal) => {
          const { root, selector } = parseImageReference(reference)
          await images.resolve(root, selector, { priority: 'foreground', signal })
        },
        starts: startListener(prefetcher, config.fetchRest === true ? rest : undefined),
        recheck: async (image, signal) => {
          if (image.reference === undefined) {
            return images.recheck(image, { priority: 'foreground', signal })
          }
          return registryImages?.recheck(image, signal)
        },
        onVerificationFailure: (what) => metrics.verificationFailed(what),
        onSpoiled: ({ id, blobDigest }) => {
          if (endContainer === undefined) return
          // What is in the page cache stays readable: only its end keeps a process from going on with it.
          for (const key of snapshots.keysOn(id)) {
            endContainer(key).then(
              () =>
                log.error(
                  { snapshot: key, layer: blobDigest },
                  `the container of snapshot ${key} was killed: its layer ${blobDigest} is not what its image promised`,
                ),
              (error: unknown) =>
                log.error(
                  { snapshot: key, layer: blobDigest, reason: String(error) },
                  `the container of snapshot ${key} runs on layer ${blobDigest}, which is not what its image promised, and could not be killed: ${String(error)}`,
                ),
            )
          }
        },
      }),
    )
    opened.use(rest)
    // First of what changes anything: it alone knows whether another agent is at work on this root.
    const snapshots = opened.use(await Snapshots.open({ root: config.root }, { layers, log, sync }))
    await layers.recover()
    // Last: a read of a layer that is not held yet would fail.
    await fuse?.start()
    if (fuse !== undefined && config.fuse !== undefined) {
      const { dir } = config.fuse
      const patienceMs = Math.min(STOP_LONGEST_MS, config.foregroundDeadlineMs)
      opened.defer(() => fuse.stop(dir, AbortSignal.timeout(patienceMs)))
      const { strays } = await mounts.mend()
      const isOurs = (lowerDir: string): boolean => lowerDir.startsWith(`${places.mountsDir}/`)
      // Their snapshots were lost together with their layers.
      const lost = strays.length === 0 ? [] : containersOn(isOurs)
      onLost(lost.filter(({ id }) => !snapshots.hasContainer(id)))
    }
    return new Snapshotter(
      { snapshots, kernel },
      {
        catalog,
        store,
        queue,
        builder,
        mounts,
        layers,
        images,
        prefetcher,
        recorder,
        waited,
        fuse,
        blocks,
        announce,
        pinned,
        hasRegistries: registries !== undefined,
      },
      opened.move(),
    )
  }

  /**
   * To be called with every manifest that the registry serves, before its answer: containerd will name its layers, or find
   * them under their chain IDs. Rejects if the manifest must not be handed out: with ImageError or BlockError if it cannot be
   * told what its layers are, or whether a layer that is here and passes for one of them is what it claims to be.
   */
  async manifestServed(
    { root, digest, bytes }: ServedManifest,
    signal: AbortSignal,
  ): Promise<void> {
    const { images } = this.#parts
    const image = await images
      .remember(root, { bytes, digest }, { priority: 'foreground', signal })
      .catch((error: unknown) => {
        // No container image but another artifact, which has no chain IDs.
        if (error instanceof ImageError && error.code === 'FAILED_PRECONDITION') return undefined
        throw error
      })
    if (image !== undefined) await this.#checkRivals(image, signal)
    await this.#parts.catalog.wal.flushed()
  }

  /**
   * To be called before containerd pulls an image by its name in a registry. Rejects if a layer that is here and would pass for one
   * of its layers has to be checked first and cannot be.
   */
  pullBegins(name: string, signal: AbortSignal): Promise<void> {
    return this.#parts.layers.pullBegins(name, signal)
  }

  /**
   * Checks that a container about to start may see what it is made of: every encrypted layer under its snapshot must be opened by
   * a key that pods of its Kubernetes namespace may use. containerd gives a snapshot to whoever names its chain ID, so this is
   * asked for each container, not for each pull. Rejects as `Layers.authorize`. `container` is its ID; of one that has no
   * snapshot here there is nothing to see.
   */
  async authorize(container: string, namespace: string): Promise<void> {
    const { snapshots } = this
    const layers = snapshots.keysOf(container).flatMap((key) => snapshots.layersUnder(key))
    await this.#parts.layers.authorize([...new Set(layers)], namespace)
  }

  /**
   * Makes the layers of an image mountable and, with `all`, fetches them whole; calls `onProgress` for each step of each
   * layer. Rejects with ImageError, BlockError or LayerError: the first that went wrong, after all have ended.
   */
  async pull(reference: string, { all, signal, onProgress }: PullOptions): Promise<ImageRecord> {
    const { images, layers, store, prefetcher } = this.#parts
    const { root, selector } = parseImageReference(reference)
    const image = await images.resolve(root, selector, { priority: 'foreground', signal })
    await this.#checkRivals(image, signal)
    const ready = image.layers.map((layer) => layers.ready(layer))
    prefetcher.replayPull(image.layers, ready)
    const pulled = await Promise.allSettled(
      ready.map(async (each) => {
        const record = await each
        const progress = (): void =>
          onProgress({
            digest: record.blobDigest,
            presentBytes: store.get(fuseInode(record.id))?.file.presentBytes ?? 0,
            layerBytes: record.layerSize,
          })
        progress()
        if (all) await layers.fetchWhole(record, signal, progress)
        return record
      }),
    )
    const failed = pulled.find((each) => each.status === 'rejected')
    if (failed !== undefined) throw failed.reason
    await this.#parts.catalog.wal.flushed()
    return image
  }

  /**
   * What this node learnt when it read a gzip layer whole: the side index of the blob with this CID (toc/side-index.ts), and only
   * of a layer that was found to be what its image promised. Rejects with LayerError NOT_FOUND, saying why.
   */
  async sideIndex(blobCid: string): Promise<Uint8Array> {
    const { catalog, builder } = this.#parts
    const record = catalog.layerByBlob(blobCid)
    const isSecret = record !== undefined && isEncrypted(record.mediaType)
    if (record?.state === 'ready' && record.format === 'tar+gzip' && record.verified && !isSecret) {
      return builder.sideIndex(record)
    }
    const why =
      record?.state !== 'ready'
        ? 'it is not on this node'
        : isSecret
          ? 'it is encrypted, and an index holds parts of it in plain text'
          : record.format === 'tar+gzip'
            ? 'not all of it was checked on this node'
            : `it is ${record.format}`
    throw new LayerError('NOT_FOUND', `there is no index of the layer at ${blobCid}: ${why}`)
  }

  /**
   * The prefetch list that this node learned of the image with this chain ID, for others. Rejects with LayerError NOT_FOUND if there
   * is none, or if a layer of the image is encrypted: it names what is in there.
   */
  async learnedList(layerChainId: string): Promise<Uint8Array> {
    const { catalog, prefetcher } = this.#parts
    const list = await prefetcher.learned(layerChainId)
    const isSecret = list?.layers
      .flatMap(({ diffId }) => catalog.layersByDiffId(diffId))
      .some(({ mediaType }) => isEncrypted(mediaType))
    if (list !== undefined && isSecret !== true) return encodePrefetchList(list)
    throw new LayerError('NOT_FOUND', `there is no prefetch list of ${layerChainId} for others`)
  }

  /**
   * Begins to record what is read of an image, which must have been pulled. Dispose of it to stop. Rejects with ImageError
   * NOT_FOUND, or FAILED_PRECONDITION where nothing is mounted lazily.
   */
  async record(reference: string): Promise<ImageRecording> {
    const { recorder, mounts, prefetcher, layers } = this.#parts
    if (recorder === undefined) {
      throw new ImageError(
        'FAILED_PRECONDITION',
        `reads are not seen on this node: ${this.kernel.reason}; record on a node that mounts lazily`,
      )
    }
    const [image] = this.#imagesNamed(reference)
    if (image === undefined) {
      throw new ImageError('NOT_FOUND', `${reference} is not on this node: pull it first`)
    }
    const records = await Promise.all(image.layers.map((layer) => layers.ready(layer)))
    return ImageRecording.start(image, records, { recorder, mounts, prefetcher })
  }

  images(): ImageRecord[] {
    return this.#parts.catalog.images()
  }

  layers(): LayerStatus[] {
    const { catalog, store, mounts } = this.#parts
    const pinned = this.#pinnedLayers()
    return catalog.layers().map((record) => {
      const file = store.get(fuseInode(record.id))?.file
      return {
        ...record,
        presentBytes: file?.presentBytes ?? 0,
        isComplete: file?.isComplete ?? false,
        isMounted: mounts.isMounted(record.id),
        isPinned: pinned.has(record.id),
      }
    })
  }

  mounts(): LazyMount[] {
    return this.#parts.mounts.list()
  }

  /** Reads that had to wait, of the layers of an image (root CID, manifest digest or reference) or of all. */
  async waitedFor(subject?: string): Promise<WaitedRead[]> {
    const { catalog, waited } = this.#parts
    if (subject === undefined) return waited.list()
    const named = new Set(
      this.#imagesNamed(subject).flatMap(({ layers }) => layers.map(({ blobCid }) => blobCid)),
    )
    const layers = catalog.layers().filter(({ blobCid }) => named.has(blobCid))
    return waited.list(new Set(layers.map(({ id }) => id)))
  }

  reads(): ReadCounters {
    const counters = this.#parts.fuse?.counters()
    return {
      requests: counters?.requests ?? new Map(),
      servedBytes: counters?.hitBytes ?? 0,
      misses: counters?.misses ?? 0,
      failures: counters?.failures ?? 0,
    }
  }

  queueDepths(): Readonly<Record<Priority, number>> {
    return this.#parts.queue.depth
  }

  /** Bytes of layer files that were fetched before they were read, since this process started, and of those the ones read since. */
  prefetched(): { readonly fetchedBytes: number; readonly usedBytes: number } {
    return this.#parts.prefetcher.counters()
  }

  /** The blobs of this node's layers, for the content store. */
  get publishedBlobs(): PublishedBlobs {
    const { catalog, builder, hasRegistries } = this.#parts
    return {
      find: async (digest) => {
        const [record] = catalog.layersByBlobDigest(digest)
        if (record === undefined) return undefined
        // It may be on its way out.
        const bytes = await builder.publishedBlob(record).catch(() => undefined)
        return bytes && { size: record.blobSize, bytes }
      },
      inRegistry: (blob, name) => {
        if (!hasRegistries) return undefined
        try {
          const { host, repository } = parseRegistryReference(name)
          if (host === IMAGE_HOST) return undefined
          return keptBlobInRegistry({ ...blob, host, repository })
        } catch {
          // Not every name of an image is one of a registry.
          return undefined
        }
      },
      open: (bytes) => builder.openPublished(bytes),
    }
  }

  /** Bytes that layers take on disk. */
  storeBytes(): Promise<number> {
    return this.#parts.store.diskBytes()
  }

  /**
   * Deletes layers that no snapshot has, least recently used first, until the store has at most `targetBytes`.
   * Resolves to what was freed.
   */
  async collectGarbage(targetBytes: number): Promise<{ freedBytes: number; layers: number }> {
    const before = await this.storeBytes()
    const { layers } = this.#parts
    const pinned = this.#pinnedLayers()
    const isUnused = (record: LayerRecord): boolean =>
      !this.snapshots.layers().has(record.id) &&
      !layers.isBuilding(record) &&
      !pinned.has(record.id)
    const unused = this.#parts.catalog
      .layers()
      .filter(isUnused)
      .toSorted((a, b) => a.lastUsedMs - b.lastUsedMs)
    let removed = 0
    for (const record of unused) {
      if ((await this.storeBytes()) <= targetBytes && targetBytes > 0) break
      // Pulled since we looked.
      if (!isUnused(record)) continue
      await layers.remove(record)
      removed += 1
    }
    this.#forgetImagesWithoutLayers()
    await this.#parts.catalog.wal.flushed()
    return { freedBytes: before - (await this.storeBytes()), layers: removed }
  }

  /** Deletes one layer by its blob's digest or CID. Rejects with LayerError NOT_FOUND, or FAILED_PRECONDITION if an image on this node has it. */
  async removeLayer(name: string): Promise<{ freedBytes: number }> {
    const record = this.#layerNamed(name)
    if (this.snapshots.layers().has(record.id)) {
      throw new LayerError(
        'FAILED_PRECONDITION',
        `layer ${name} belongs to an image that containerd has: remove the image first`,
      )
    }
    if (this.#pinnedLayers().has(record.id)) {
      throw new LayerError(
        'FAILED_PRECONDITION',
        `layer ${name} is of an image that store.pinned names: take it out of the configuration first`,
      )
    }
    const before = await this.storeBytes()
    await this.#parts.layers.remove(record)
    return { freedBytes: before - (await this.storeBytes()) }
  }

  /**
   * Reads a layer, by its blob's digest or CID, from the disk, checks it and heals it. Rejects with LayerError NOT_FOUND, and as
   * `Layers.checkOnDisk`.
   */
  async checkLayer(name: string, signal: AbortSignal): Promise<CheckedLayer> {
    return this.#parts.layers.checkOnDisk(this.#layerNamed(name), signal)
  }

  /** Copies what databases have in their logs, and waits for the disk meanwhile: for when there is nothing else to do. */
  tidy(): void {
    this.#parts.catalog.wal.checkpoint()
    this.snapshots.tidy()
  }

  /** How many lazy mounts a container may still stand on: those stay when the agent stops. */
  mountsInUse(): number {
    for (const page of this.snapshots.list(['kind==active', 'kind==view'])) {
      if (page.length > 0) return this.mounts().length
    }
    return 0
  }

  /** Waits for what is in flight and closes everything. Mounts stay: containers may use them. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }

  #layerNamed(name: string): LayerRecord {
    const record = this.#parts.catalog
      .layers()
      .find(({ blobDigest, blobCid }) => blobDigest === name || blobCid === name)
    if (record !== undefined) return record
    throw new LayerError('NOT_FOUND', `no layer ${name} on this node; 'ipdr cache ls' lists them`)
  }

  /** They are found again when they are pulled again; until then their names would only add up. */
  #forgetImagesWithoutLayers(): void {
    const { catalog } = this.#parts
    const here = new Set(catalog.layers().map(({ blobCid }) => blobCid))
    for (const { id, layers } of catalog.images()) {
      if (!layers.some(({ blobCid }) => here.has(blobCid))) catalog.forgetImage(id)
    }
  }

  /** As `Layers.checkRivals`. An image that is refused is forgotten: its chain IDs would stand before those of honest ones. */
  async #checkRivals(image: ImageRecord, signal: AbortSignal): Promise<void> {
    const { layers, catalog } = this.#parts
    try {
      await layers.checkRivals(image, signal)
    } catch (error) {
      const isRefused =
        error instanceof CodedError &&
        (error.code === 'PERMISSION_DENIED' || error.code === 'DATA_LOSS')
      if (isRefused) catalog.forgetImage(image.id)
      throw error
    }
  }

  #pinnedLayers(): ReadonlySet<number> {
    return pinnedLayers(this.#parts.catalog, this.#parts.pinned)
  }

  #imagesNamed(subject: string): ImageRecord[] {
    const images = this.images()
    const exact = images.filter(
      ({ rootCid, manifestDigest, reference }) =>
        subject === rootCid || subject === manifestDigest || subject === reference,
    )
    if (exact.length > 0) return exact
    const { root } = parseImageReference(subject)
    return images.filter(({ rootCid }) => rootCid === root.toV1().toString())
  }
}

export type PullOptions = {
  readonly all: boolean
  readonly signal: AbortSignal
  readonly onProgress: (step: {
    readonly digest: string
    readonly presentBytes: number
    readonly layerBytes: number
  }) => void
}

type Parts = {
  readonly catalog: Catalog
  readonly store: BlobStore
  readonly queue: FetchQueue<Fetched>
  readonly builder: LayerBuilder
  readonly mounts: LayerMounts
  readonly layers: Layers
  readonly images: Images
  readonly prefetcher: Prefetcher
  readonly recorder: StartRecorder | undefined
  readonly waited: WaitedReads
  readonly fuse: FuseServer | undefined
  readonly blocks: BlockSource
  readonly announce: (root: CID, manifest?: Digest) => void
  readonly pinned: PinnedImages
  readonly hasRegistries: boolean
}

/** An end that was asked for is no failure. */
async function failureOf(
  { fuse, catalog }: Pick<Parts, 'fuse' | 'catalog'>,
  snapshots: Snapshots,
): Promise<never> {
  const never = new Promise<never>(() => {})
  const unserved = fuse === undefined ? never : fuse.ended().then(() => never)
  return await Promise.race([unserved, catalog.wal.failed, snapshots.failed])
}

/** What mounts of either kind are made from, as far as the configuration leaves the choice and the kernel has it. */
async function mountedFrom(
  { root, mountsFrom = 'auto' }: SnapshotterConfig,
  { kernel, log }: { readonly kernel: KernelReport; readonly log: Log },
): Promise<{ readonly fuseMountsFrom: MountedFrom; readonly plainMountsFrom: MountedFrom }> {
  if (kernel.rung !== 'erofs-file' || mountsFrom === 'loops') {
    return { fuseMountsFrom: 'loops', plainMountsFrom: 'loops' }
  }
  if (mountsFrom === 'files') return { fuseMountsFrom: 'files', plainMountsFrom: 'files' }
  const { rung, reason } = await probeKernel(root, ['erofs-loop'])
  if (rung === 'erofs-loop') return { fuseMountsFrom: 'loops', plainMountsFrom: 'files' }
  log.warn(
    { reason },
    `containers that start before their image is here will need the agent as long as they live, since this kernel has no loop devices for it: ${reason}`,
  )
  return { fuseMountsFrom: 'files', plainMountsFrom: 'files' }
}

function layerServer(fuse: FuseServer): LayerServer {
  return {
    add: ({ inode, name, file }: LazyLayer) =>
      fuse.add({ inode, name, size: file.map.layerSize, units: file.units }),
    remove: (inode) => fuse.remove(inode),
  }
}

/** What an image that starts sets going: it is prefetched, and learned from. */
function startListener(prefetcher: Prefetcher, rest: RestFetcher | undefined): StartListener {
  return {
    pulling: (layers, ready) => prefetcher.replayPull(layers, ready),
    mounted: (layers, cold) => {
      prefetcher.learn(layers, cold)
      prefetcher.replay(layers)
      rest?.add(layers)
    },
  }
}

/** So many quarters of all fetches, within a limit: the rest is kept free for page faults. */
function shareOf(total: number, quarters: number, limit: number): number {
  return Math.max(1, Math.min(limit, Math.floor((total * quarters) / 4)))
}

function codeOf(error: unknown): string {
  return error instanceof CodedError ? error.code : 'INTERNAL'
}
