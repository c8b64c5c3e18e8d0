import { mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { ByteRange } from '../byte-range.ts'
import { LayerError } from '../errors.ts'
import type { Log } from '../log.ts'
import { ReusedMemory } from '../reused-memory.ts'
import type { FetchQueue } from './fetch-queue.ts'
import { LayerFile } from './layer-file.ts'
import { LayerFileWriter } from './layer-file-writer.ts'
import type { LayerMap } from './layer-map.ts'
import type { UnitSource } from './layer-source.ts'
import {
  type Destination,
  type Fetched,
  LazyLayer,
  type ReadRequest,
  type WaitEvent,
} from './lazy-layer.ts'
import { unitCount, unitRange } from './shared-units.ts'

/** How long bytes may be here without being called so after a crash, in ms. 5 s at 250 MB/s: about 1 GiB fetched again at worst. */
const FLUSH_INTERVAL_MS = 5_000

/** And how many of them, whichever comes first. 256 MiB: a second of a fast network, some 60 MB/s of disk writing at 5 s. */
const FLUSH_BYTES = 256 * 1024 * 1024

/** How far an eviction goes below the cap, as a share of it, so that the next one is not due at once. */
const EVICTION_SLACK = 0.1

/** Directory names of layers: what may come from a digest or a CID, and fits a file name. */
const LAYER_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$/

export type BlobStoreConfig = {
  /** The directory of all layer files, on a file system with holes (ext4, xfs, btrfs, tmpfs). */
  readonly root: string
  /** Bytes on disk beyond which the units least recently used go. */
  readonly bytesMax: number
}

/** A layer to be held. */
export type LayerToHold = {
  /** The number the kernel knows it by: the same in every process that ever serves it. */
  readonly inode: number
  /** Names its directory, and its file in the flat file system. */
  readonly name: string
  readonly map: LayerMap
  readonly source: UnitSource
}

type Collaborators = {
  readonly queue: FetchQueue<Fetched>
  readonly log: Log
  /** Told of each part that a foreground read had to wait for. */
  readonly onWait?: (event: WaitEvent) => void
  /** Told once readers have waited for most of a layer: the rest will be wanted too. */
  readonly onMostRead?: (layer: LazyLayer) => void
  /** Told once all of a layer is here and durable: from then on its plain file can be mounted. */
  readonly onComplete?: (layer: LazyLayer) => void
  /** Inodes of layers of which nothing is evicted, asked for at each eviction. */
  readonly pinned?: () => ReadonlySet<number>
}

/** The layer files of this node: on disk as far as they were read, fetched on demand, within a number of bytes. */
export class BlobStore implements AsyncDisposable {
  /** What blocks and units pass through on their way to the disk. */
  readonly memory: ReusedMemory = new ReusedMemory()
  readonly #config: BlobStoreConfig
  readonly #queue: FetchQueue<Fetched>
  readonly #log: Log
  readonly #onWait: (event: WaitEvent) => void
  readonly #onMostRead: (layer: LazyLayer) => void
  readonly #onComplete: (layer: LazyLayer) => void
  readonly #pinned: () => ReadonlySet<number>
  readonly #layers = new Map<number, LazyLayer>()
  readonly #names = new Set<string>()
  readonly #flushTimer: NodeJS.Timeout
  #flushing: Promise<void> | undefined
  #unflushedBytes = 0
  readonly #completing = new Set<Promise<void>>()
  #evicting: Promise<void> | undefined
  /** Disk bytes as last measured and what has arrived since; an eviction is due when they pass the mark. */
  #usedBytes = 0
  #evictAtBytes: number
  #evictedBytes = 0

  private constructor(config: BlobStoreConfig, collaborators: Collaborators) {
    const { queue, log, onWait, onMostRead, onComplete, pinned } = collaborators
    this.#config = config
    this.#queue = queue
    this.#log = log
    this.#onWait = onWait ?? (() => {})
    this.#onMostRead = onMostRead ?? (() => {})
    this.#onComplete = onComplete ?? (() => {})
    this.#pinned = pinned ?? (() => new Set())
    this.#evictAtBytes = config.bytesMax
    this.#flushTimer = setInterval(() => this.#startFlush(), FLUSH_INTERVAL_MS)
    this.#flushTimer.unref()
  }

  /** Opens the store; no layer is held until it is added. Rejects with what the disk says. */
  static async open(config: BlobStoreConfig, collaborators: Collaborators): Promise<BlobStore> {
    await mkdir(config.root, { recursive: true, mode: 0o700 })
    return new BlobStore(config, collaborators)
  }

  /**
   * Holds a layer, with what is on disk of it. Nothing is evicted before bytes arrive, so that mounts found at the start
   * can be pinned once all layers are added. Rejects with LayerError ALREADY_EXISTS or INVALID_ARGUMENT, and with what
   * the disk says.
   */
  async add({ inode, name, map, source }: LayerToHold): Promise<LazyLayer> {
    const dir = this.#directory(name)
    if (this.#layers.has(inode) || this.#names.has(name)) {
      throw new LayerError('ALREADY_EXISTS', `layer ${name}, inode ${inode}, is already held`, {
        inode,
        name,
      })
    }
    this.#names.add(name)
    try {
      const file = await LayerFile.open(dir, map, { log: this.#log })
      const layer = new LazyLayer(
        { inode, name, file },
        {
          source,
          queue: this.#queue,
          memory: this.memory,
          onWait: this.#onWait,
          onArrival: (arrived, bytes) => this.#arrived(arrived, bytes),
          onMostRead: this.#onMostRead,
        },
      )
      this.#layers.set(inode, layer)
      this.#usedBytes += await file.diskBytes()
      return layer
    } catch (error) {
      this.#names.delete(name)
      throw error
    }
  }

  /** Starts to write the layer file `name` as a stream; once it is sealed, `add` holds it, whole. */
  async write(name: string): Promise<LayerFileWriter> {
    const dir = this.#directory(name)
    if (this.#names.has(name)) {
      throw new LayerError('ALREADY_EXISTS', `layer ${name} is already held`, { name })
    }
    return LayerFileWriter.create(dir)
  }

  get(inode: number): LazyLayer | undefined {
    return this.#layers.get(inode)
  }

  /** All layers that are held. */
  layers(): Iterable<LazyLayer> {
    return this.#layers.values()
  }

  /** All bytes of a range of a layer file. Rejects as `LazyLayer.read`, and with LayerError NOT_FOUND. */
  async read(inode: number, range: ByteRange, request: ReadRequest): Promise<Buffer> {
    return this.#held(inode).read(range, request)
  }

  /** As `LazyLayer.readInto`. Rejects as `read`. */
  async readInto(
    inode: number,
    range: ByteRange,
    into: Destination,
    request: ReadRequest,
  ): Promise<void> {
    await this.#held(inode).readInto(range, into, request)
  }

  /**
   * Lets go of a layer and deletes its bytes. Stop serving it first. Rejects with LayerError FAILED_PRECONDITION while
   * its plain file is mounted.
   */
  async remove(inode: number): Promise<void> {
    const layer = this.#layers.get(inode)
    if (layer === undefined) return
    if (layer.isPinned) {
      throw new LayerError(
        'FAILED_PRECONDITION',
        `layer ${layer.name} is not removed: its file is mounted`,
        { inode, name: layer.name },
      )
    }
    this.#layers.delete(inode)
    await this.#evicting
    await layer.file.delete()
    await layer[Symbol.asyncDispose]()
    this.#names.delete(layer.name)
  }

  /** Lets go of a layer and leaves its bytes where they are, for `add` to find. Stop serving it first. */
  async letGo(inode: number): Promise<void> {
    const layer = this.#layers.get(inode)
    if (layer === undefined) return
    this.#layers.delete(inode)
    await this.#evicting
    await layer[Symbol.asyncDispose]()
    this.#names.delete(layer.name)
  }

  /**
   * Deletes what lies in the store and belongs to no layer held: call it once all are added, before one is written.
   * Resolves to the names deleted.
   */
  async sweep(): Promise<string[]> {
    const names = await readdir(this.#config.root)
    const orphans = names.filter((name) => !this.#names.has(name))
    for (const name of orphans) {
      await rm(join(this.#config.root, name), { recursive: true, force: true })
    }
    return orphans
  }

  /** Bytes that the layers take on disk, as the file system counts them. */
  async diskBytes(): Promise<number> {
    const each = await Promise.all([...this.#layers.values()].map(({ file }) => file.diskBytes()))
    return each.reduce((sum, bytes) => sum + bytes, 0)
  }

  /** Counts for metrics. */
  counters(): { layers: number; presentBytes: number; evictedBytes: number; notKept: number } {
    const files = [...this.#layers.values()].map(({ file }) => file)
    return {
      layers: files.length,
      presentBytes: files.reduce((sum, file) => sum + file.presentBytes, 0),
      evictedBytes: this.#evictedBytes,
      notKept: files.reduce((sum, file) => sum + file.notKept, 0),
    }
  }

  /** Makes durable what is here of all layers. What a disk refuses is logged, tried again later, and fetched again at worst. */
  async flush(): Promise<void> {
    this.#unflushedBytes = 0
    for (const { file, name } of this.#layers.values()) {
      try {
        await file.flush()
      } catch (error) {
        this.#log.warn(
          { layer: name },
          `what arrived of layer ${name} is not yet durable: ${String(error)}`,
        )
      }
    }
  }

  /** Ends every read that waits, makes durable what arrived, and closes all files. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#flushTimer)
    await Promise.all([this.#flushing, this.#evicting, ...this.#completing])
    const layers = [...this.#layers.values()]
    this.#layers.clear()
    await Promise.all(layers.map((layer) => layer[Symbol.asyncDispose]()))
  }

  #held(inode: number): LazyLayer {
    const layer = this.#layers.get(inode)
    if (layer === undefined) {
      throw new LayerError('NOT_FOUND', `no layer with inode ${inode} is held`, { inode })
    }
    return layer
  }

  #directory(name: string): string {
    if (!LAYER_NAME.test(name)) {
      throw new LayerError('INVALID_ARGUMENT', `'${name}' cannot be the name of a layer file`, {
        name,
      })
    }
    return join(this.#config.root, name)
  }

  #arrived(layer: LazyLayer, bytes: number): void {
    this.#unflushedBytes += bytes
    if (layer.file.isComplete) {
      const work = this.#completed(layer).finally(() => this.#completing.delete(work))
      this.#completing.add(work)
    } else if (this.#unflushedBytes >= FLUSH_BYTES) this.#startFlush()
    this.#usedBytes += bytes
    if (this.#usedBytes > this.#evictAtBytes) this.#startEviction()
  }

  async #completed(layer: LazyLayer): Promise<void> {
    try {
      await layer.file.flush()
    } catch (error) {
      this.#log.warn(
        { layer: layer.name },
        `layer ${layer.name} is whole but not durable: ${String(error)}`,
      )
      return
    }
    // An eviction may have come in between.
    if (layer.file.isComplete && this.#layers.has(layer.inode)) this.#onComplete(layer)
  }

  #startFlush(): void {
    this.#flushing ??= this.flush().finally(() => {
      this.#flushing = undefined
    })
  }

  #startEviction(): void {
    this.#evicting ??= this.#evict()
      .catch((error: unknown) => {
        this.#log.error({}, `the layer cache could not be made smaller: ${String(error)}`)
      })
      .finally(() => {
        this.#evicting = undefined
      })
  }

  /** Takes away the units least recently used, until the files are as small as they should be. */
  async #evict(): Promise<void> {
    const { bytesMax } = this.#config
    for (;;) {
      this.#usedBytes = await this.diskBytes()
      if (this.#usedBytes <= bytesMax) {
        this.#evictAtBytes = bytesMax
        return
      }
      const surplus = this.#usedBytes - bytesMax * (1 - EVICTION_SLACK)
      const freed = (await this.#takeAway(surplus)) || (await this.#reclaim())
      if (freed === 0) break
      // Bytes arrive meanwhile: look again.
    }
    this.#evictAtBytes = this.#usedBytes + bytesMax * (EVICTION_SLACK / 2)
    this.#log.warn(
      { diskBytes: this.#usedBytes, bytesMax },
      `layer files take ${this.#usedBytes} bytes on disk, ${bytesMax} are allowed: the rest is pinned, or was mounted since the machine booted and can only be removed whole`,
    )
  }

  /** Evicts about so many bytes and resolves to how many it were. */
  async #takeAway(bytes: number): Promise<number> {
    let taken = 0
    for (const [layer, units] of this.#leastRecentlyUsed(bytes)) {
      taken += await layer.file.evict(units)
    }
    this.#evictedBytes += taken
    return taken
  }

  /** Gives back what crashes left behind, and resolves to how many bytes it was. */
  async #reclaim(): Promise<number> {
    let freed = 0
    for (const layer of this.#layers.values()) {
      freed += await layer.file.reclaim()
    }
    return freed
  }

  /** Units of at least `bytes` bytes together, if there are so many that may go, by layer. */
  #leastRecentlyUsed(bytes: number): Map<LazyLayer, number[]> {
    const candidates: { layer: LazyLayer; unit: number; lastUse: number }[] = []
    const pinned = this.#pinned()
    for (const layer of this.#layers.values()) {
      if (layer.file.wasMounted || pinned.has(layer.inode)) continue
      const { units } = layer.file
      for (let unit = 0; unit < unitCount(units.starts); unit++) {
        if (layer.file.has(unit)) {
          candidates.push({ layer, unit, lastUse: units.lastUse[unit] ?? 0 })
        }
      }
    }
    candidates.sort((a, b) => a.lastUse - b.lastUse)
    const chosen = new Map<LazyLayer, number[]>()
    let freed = 0
    for (const { layer, unit } of candidates) {
      if (freed >= bytes) break
      const { start, end } = unitRange(layer.file.units, unit)
      freed += end - start
      const units = chosen.get(layer)
      if (units === undefined) chosen.set(layer, [unit])
      else units.push(unit)
    }
    return chosen
  }
}
