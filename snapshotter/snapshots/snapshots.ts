import { join } from 'node:path'
import { type FieldOf, parseFilters } from '../containerd/filters.ts'
import type { Labels } from '../containerd/labels.ts'
import { SnapshotError } from '../errors.ts'
import type { Log } from '../log.ts'
import { unlessAborted } from '../unless-aborted.ts'
import type { SyncFile } from '../write-ahead-log.ts'
import { wallClock } from './clock.ts'
import { SnapshotDirectories } from './directories.ts'
import { diskUsage } from './disk-usage.ts'
import { IdMapping } from './id-mapping.ts'
import type { ClaimedLayer, ClaimRequest, LazyLayers, RecalledLayer } from './lazy-layers.ts'
import {
  type ChainLink,
  Metastore,
  SNAPSHOT_REF_LABEL,
  type SnapshotInfo,
  type SnapshotRecord,
  type Usage,
} from './metastore.ts'
import { type Mount, readOnlyMount, writableMount } from './mounts.ts'
import { ShiftedMounts } from './shifted-mounts.ts'

export type { Labels } from '../containerd/labels.ts'
export type { Kind, SnapshotInfo, Usage } from './metastore.ts'
export type { Mount } from './mounts.ts'

/** What Prepare comes to: something to write to, or a layer that need not be downloaded. */
export type Prepared =
  | { readonly kind: 'active'; readonly mounts: readonly Mount[] }
  | { readonly kind: 'committed'; readonly snapshot: SnapshotInfo }

/** A new active snapshot or view: an empty one, or one built on the committed `parent`. */
export type NewSnapshot = {
  readonly key: string
  readonly parent: string | undefined
  readonly labels: Labels
}

/** Set by containerd 2.3 and later: the chain ID of the parent, also where it unpacks layers side by side, prepared without parents. */
const PARENT_CHAIN_ID_LABEL = 'containerd.io/snapshot/parent-chain-id'

/**
 * What the committed snapshot of a layer is called: its chain ID where we claimed it (`Metastore.commitLayer`), and where containerd
 * unpacked it, `<namespace>/<number>/<chain ID>` (metadata/snapshot.go, createKey).
 */
const LAYER_SNAPSHOT_NAME = /^(?:[^/]+\/\d+\/)?(sha256:[0-9a-f]{64})(?:@\d+)?$/

/** Key of a snapshot in which a lost layer is unpacked anew. */
const RESTORE_PREFIX = 'ipdr-restore/'

/** How often a layer is claimed that garbage collection removes before its snapshot is made. 3: each removal needs a collection of its own. */
const CLAIMS_MAX = 3

/** How long nobody is asked again for a snapshot that could not be restored, in ms. 10 s: CRI asks for all of its images, some again and again. */
const RESTORE_PAUSE_MS = 10_000

/** Snapshots that could not be restored and are remembered. 10,000 names of 71 bytes: 1 MB. */
const UNRESTORED_MAX = 10_000

/** Snapshots in one page of a list: what containerd's own server sends in one message. */
const PAGE_SNAPSHOTS = 100

/**
 * A complete containerd snapshotter over overlayfs, whose committed snapshots may also be lazy layers. Snapshots survive
 * the process at every point: a directory is made before and deleted after its row in the metastore, so that one
 * without a row is garbage. To survive a power cut as well, whoever is told of a call waits for `flushed`.
 */
export class Snapshots implements AsyncDisposable {
  readonly #metastore: Metastore
  readonly #directories: SnapshotDirectories
  readonly #shifted: ShiftedMounts
  readonly #layers: LazyLayers
  readonly #log: Pick<Log, 'warn'>
  /** IDs whose directories are made and whose rows are not yet: no garbage. */
  readonly #beingMade = new Set<number>()
  readonly #inBackground = new Set<Promise<void>>()
  /** The last lost snapshot that is being restored. One after the other: they have layers in common. */
  #restoring: Promise<void> = Promise.resolve()
  /** Since when it is known of lost snapshots that they cannot be restored, by name, in ms of `performance.now`. */
  readonly #unrestored = new Map<string, number>()
  /** Committed snapshots whose directories somebody deleted. */
  #lost: ReadonlySet<number> = new Set()

  private constructor(
    parts: { metastore: Metastore; directories: SnapshotDirectories; shifted: ShiftedMounts },
    { layers, log }: { layers: LazyLayers; log: Pick<Log, 'warn'> },
  ) {
    this.#metastore = parts.metastore
    this.#directories = parts.directories
    this.#shifted = parts.shifted
    this.#layers = layers
    this.#log = log
  }

  /**
   * Opens the snapshots under `root`, which this process alone may use, deletes what a killed process left half-made and
   * makes good what a power cut took. Rejects with SnapshotError: UNAVAILABLE (in use), FAILED_PRECONDITION
   * (written by a newer agent), INVALID_ARGUMENT (`root` cannot stand in mount options).
   */
  static async open(
    { root }: { readonly root: string },
    collaborators: {
      readonly layers: LazyLayers
      readonly log: Pick<Log, 'warn'>
      readonly sync?: SyncFile | undefined
    },
  ): Promise<Snapshots> {
    const directories = await SnapshotDirectories.open(join(root, 'snapshots'))
    const { sync } = collaborators
    const metastore = new Metastore(join(root, 'snapshots.db'), { clock: wallClock, sync })
    const shifted = await ShiftedMounts.open(join(root, 'i'))
    const snapshots = new Snapshots({ metastore, directories, shifted }, collaborators)
    try {
      await snapshots.#recover()
    } catch (error) {
      await metastore[Symbol.asyncDispose]()
      throw error
    }
    return snapshots
  }

  /**
   * Resolves when all that any call before this one has changed is on disk: to be awaited before anybody is told of it. Rejects as
   * `failed`.
   */
  async flushed(): Promise<void> {
    await this.#metastore.wal.flushed()
  }

  /** Rejects when the disk did not take a change: what is there is known after a restart only. */
  get failed(): Promise<never> {
    return this.#metastore.wal.failed
  }

  /**
   * Makes an active snapshot. If its labels ask for a layer by chain ID and the layer is one of ours, that layer becomes
   * a committed snapshot on the same parent instead. Rejects with SnapshotError NOT_FOUND (parent), INVALID_ARGUMENT
   * (parent not committed, label or key too long), ALREADY_EXISTS (key), FAILED_PRECONDITION (a layer without its parent), or
   * with what the layer cannot be had for.
   */
  async prepare(snapshot: NewSnapshot, signal: AbortSignal): Promise<Prepared> {
    const { key, parent, labels } = snapshot
    if (parent === undefined && labels.has(PARENT_CHAIN_ID_LABEL)) throw unpackedSideBySide(key)
    const claimed = await this.#claim(snapshot, signal)
    if (claimed !== undefined) return { kind: 'committed', snapshot: claimed }
    return { kind: 'active', mounts: await this.#create('active', snapshot, signal) }
  }

  /** Makes a read-only snapshot of `parent`. Rejects as `prepare`. */
  async view(snapshot: NewSnapshot, signal: AbortSignal): Promise<readonly Mount[]> {
    return await this.#create('view', snapshot, signal)
  }

  /** The mounts of an active snapshot or view, again. Rejects with NOT_FOUND, FAILED_PRECONDITION (committed), DATA_LOSS. */
  async mounts(key: string, signal: AbortSignal): Promise<readonly Mount[]> {
    const record = this.#metastore.get(key)
    if (record.kind === 'committed') {
      throw new SnapshotError(
        'FAILED_PRECONDITION',
        `snapshot ${key} is committed: it has no mounts`,
      )
    }
    const lowerDirs = await this.#lowerDirs(record.parentId, signal)
    return [this.#mountOf(record, await this.#shiftedDirs(record, lowerDirs))]
  }

  /**
   * Turns the active snapshot `key` into the committed `name`. `parent` is for one that was prepared without. Rejects
   * with ALREADY_EXISTS (name), NOT_FOUND, FAILED_PRECONDITION (not active, a layer without its parent), INVALID_ARGUMENT
   * (another parent).
   */
  async commit(
    change: NewSnapshot & { readonly name: string },
    signal: AbortSignal,
  ): Promise<SnapshotInfo> {
    const { id, parent, labels } = this.#metastore.getCommittable(change.key, change.name)
    const isRebased = parent === undefined && change.parent !== undefined
    // containerd 2.2 tells no sooner.
    if (isRebased && labels.has(SNAPSHOT_REF_LABEL)) throw unpackedSideBySide(change.key)
    const usage = await diskUsage(this.#directories.content(id), signal)
    return this.#metastore.commit({ ...change, usage })
  }

  /**
   * Forgets a snapshot at once and deletes its files in the background. Throws NOT_FOUND, or FAILED_PRECONDITION if
   * others are built on it.
   */
  remove(key: string): void {
    const { id, layer, layerReleased } = this.#metastore.remove(key)
    this.#background(`deleting the directory of snapshot ${key}`, this.#removeDirectory(id))
    if (layer !== undefined && layerReleased) {
      this.#background(`releasing layer ${layer} of snapshot ${key}`, this.#layers.released(layer))
    }
  }

  /**
   * Rejects with NOT_FOUND. A committed snapshot of a lazy layer that was lost, with the metastore or the whole root, is made anew if
   * somebody still knows its image: containerd keeps its name for ever, and could not even pull the image again.
   */
  async stat(key: string, signal: AbortSignal): Promise<SnapshotInfo> {
    await this.#restoreIfLost(key, signal)
    return this.#metastore.get(key)
  }

  /**
   * Replaces labels: all, or those that `paths` name (`labels`, `labels.<key>`), and deletes those without a value.
   * Throws NOT_FOUND, or INVALID_ARGUMENT for the path of anything that cannot be changed.
   */
  update(change: { name: string; labels: Labels; paths: readonly string[] }): SnapshotInfo {
    return this.#metastore.update(change)
  }

  /**
   * The snapshots that pass any of containerd's `filters`, in pages. Others may come and go while it is read; one that is
   * there all the time is listed once. Throws INVALID_ARGUMENT before the first page.
   */
  *list(filters: readonly string[]): Generator<readonly SnapshotInfo[], void> {
    const passes = parseFilters(filters)
    let after = 0
    for (;;) {
      const page = this.#metastore.page(after, PAGE_SNAPSHOTS)
      const last = page.at(-1)
      if (last === undefined) return
      const passed = page.filter((snapshot) => passes(fieldsOf(snapshot)))
      if (passed.length > 0) yield passed
      after = last.id
    }
  }

  /** The active snapshots that containerd keeps for a container: their key is its ID, or ends in it (`k8s.io/12/<ID>`). */
  keysOf(container: string): string[] {
    return [...this.#records()]
      .filter(
        ({ kind, name }) =>
          kind === 'active' && name.slice(name.lastIndexOf('/') + 1) === container,
      )
      .map(({ name }) => name)
  }

  /** The lazy layers that a snapshot stands on, topmost first. Throws NOT_FOUND. */
  layersUnder(key: string): number[] {
    const { parentId } = this.#metastore.get(key)
    if (parentId === undefined) return []
    return this.#metastore
      .chain(parentId)
      .flatMap(({ layer }) => (layer === undefined ? [] : [layer]))
  }

  /** Whether a container with this ID has a snapshot here, in any namespace of containerd. */
  hasContainer(id: string): boolean {
    return [...this.#records()].some(({ name }) => name.endsWith(`/${id}`))
  }

  /** The active snapshots that stand on a lazy layer. */
  keysOn(layer: number): string[] {
    return [...this.#records()]
      .filter(({ kind, name }) => kind === 'active' && this.layersUnder(name).includes(layer))
      .map(({ name }) => name)
  }

  /** Without parents: measured now for an active snapshot, kept from the commit for a committed one. Rejects with NOT_FOUND. */
  async usage(key: string, signal: AbortSignal): Promise<Usage> {
    const record = this.#metastore.get(key)
    if (record.kind === 'active')
      return await diskUsage(this.#directories.content(record.id), signal)
    return record.usage ?? { size: 0n, inodes: 0n }
  }

  /** Waits until what was removed is deleted, and deletes every directory that no snapshot has. */
  async cleanup(): Promise<void> {
    await this.#settled()
    await this.#deleteOrphans()
    await this.#settled()
    this.#metastore.refillReserve()
  }

  /** As `Snapshotter.tidy`. */
  tidy(): void {
    this.#metastore.wal.checkpoint()
  }

  /** The lazy layers that snapshots are made of: none of them may be deleted. */
  layers(): ReadonlySet<number> {
    return this.#metastore.layers()
  }

  /** Waits for what runs in the background and closes the metastore. Twice is harmless. Nothing is unmounted. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#restoring
    await this.#settled()
    await this.#metastore[Symbol.asyncDispose]()
  }

  async #claim(snapshot: NewSnapshot, signal: AbortSignal): Promise<SnapshotInfo | undefined> {
    const { key, parent, labels } = snapshot
    const layerChainId = labels.get(SNAPSHOT_REF_LABEL)
    if (layerChainId === undefined) return undefined
    await this.#restoreIfLost(parent, signal)
    if (parent !== undefined) this.#metastore.getParent(parent)
    const claimed = await this.#heldClaim({ layerChainId, labels, signal })
    if (claimed === undefined) return undefined
    const { layer, diffId, size, inodes } = claimed
    if (parent === undefined && diffId !== layerChainId) throw unpackedSideBySide(key)
    return this.#metastore.commitLayer({
      layerChainId,
      parent,
      labels,
      layer,
      usage: { size, inodes },
    })
  }

  /** A claim whose layer is there in this turn. Rejects with ABORTED where garbage collection was faster each time. */
  async #heldClaim(request: ClaimRequest): Promise<ClaimedLayer | undefined> {
    for (let attempt = 0; attempt < CLAIMS_MAX; attempt++) {
      const claimed = await this.#layers.claim(request)
      if (claimed === undefined || this.#layers.holds(claimed.layer)) return claimed
      request.signal.throwIfAborted()
    }
    const { layerChainId } = request
    throw new SnapshotError(
      'ABORTED',
      `layer ${layerChainId} was removed ${CLAIMS_MAX} times while it was claimed: try again`,
      { layer: layerChainId },
    )
  }

  /** What cannot be restored is left to be found missing. Rejects if the layer is ours and cannot be had. */
  async #restoreIfLost(name: string | undefined, signal: AbortSignal): Promise<void> {
    if (name === undefined || this.#metastore.find(name) !== undefined) return
    const [, layerChainId] = LAYER_SNAPSHOT_NAME.exec(name) ?? []
    if (layerChainId === undefined) return
    const since = this.#unrestored.get(name)
    if (since !== undefined && performance.now() - since < RESTORE_PAUSE_MS) return
    const restoring = this.#restoring.then(() => this.#restore(name, layerChainId, signal))
    this.#restoring = restoring.catch(() => undefined)
    await unlessAborted(restoring, signal)
  }

  async #restore(name: string, layerChainId: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    // Whoever was before us may have asked for the same one.
    if (this.#metastore.find(name) !== undefined) return
    const layers = await this.#layers.recall(layerChainId, signal)
    if (layers === undefined) {
      if (this.#unrestored.size >= UNRESTORED_MAX) this.#unrestored.clear()
      this.#unrestored.set(name, performance.now())
      return
    }
    let parent: string | undefined
    for (const layer of layers) {
      const isAsked = layer === layers.at(-1)
      parent = await this.#restoreLayer(layer, { parent, name: isAsked ? name : undefined }, signal)
    }
    this.#log.warn(
      { snapshot: name, layers: layers.length },
      `snapshot ${name} was lost on this node, and was made anew from what is known of its image`,
    )
  }

  /** Returns the name of the committed snapshot: `name`, or that of one that is there already or its chain ID. */
  async #restoreLayer(
    layer: RecalledLayer,
    { parent, name }: { readonly parent: string | undefined; readonly name: string | undefined },
    signal: AbortSignal,
  ): Promise<string> {
    const { layerChainId } = layer
    const labels = new Map([[SNAPSHOT_REF_LABEL, layerChainId]])
    if ('claimed' in layer) {
      const { layer: id, size, inodes } = layer.claimed
      if (!this.#layers.holds(id)) {
        throw new SnapshotError('ABORTED', `layer ${layerChainId} was removed meanwhile: try again`)
      }
      const usage = { size, inodes }
      const named = name === undefined ? {} : { name }
      const snapshot = { layerChainId, parent, labels, layer: id, usage, ...named }
      return this.#metastore.commitLayer(snapshot).name
    }
    const wanted = name ?? layerChainId
    if (this.#metastore.find(wanted) !== undefined) return wanted
    const key = `${RESTORE_PREFIX}${wanted}`
    // Of an agent that ended meanwhile.
    if (this.#metastore.find(key) !== undefined) this.remove(key)
    const mounts = await this.#create('active', { key, parent, labels: new Map() }, signal)
    try {
      await layer.unpack(mounts, signal)
      await this.commit({ key, name: wanted, parent, labels: new Map() }, signal)
    } catch (error) {
      this.remove(key)
      throw error
    }
    return wanted
  }

  async #create(
    kind: 'active' | 'view',
    snapshot: NewSnapshot,
    signal: AbortSignal,
  ): Promise<readonly Mount[]> {
    if (this.#metastore.find(snapshot.key) !== undefined) {
      throw new SnapshotError('ALREADY_EXISTS', `snapshot ${snapshot.key} already exists`)
    }
    // Refused before anything is made.
    IdMapping.of(snapshot.labels)
    await this.#restoreIfLost(snapshot.parent, signal)
    const id = this.#metastore.reserveId()
    this.#beingMade.add(id)
    let created: SnapshotRecord | undefined
    try {
      if (hasDirectory({ kind, parent: snapshot.parent })) await this.#directories.create(id, kind)
      created = this.#metastore.create({ id, kind, ...snapshot })
      const lowerDirs = await this.#lowerDirs(created.parentId, signal)
      const [top] = lowerDirs
      if (kind === 'active' && top !== undefined) {
        await this.#directories.adoptRoot(id, top, IdMapping.of(created.labels))
      }
      return [this.#mountOf(created, await this.#shiftedDirs(created, lowerDirs))]
    } catch (error) {
      // Else the key would be taken when containerd tries again.
      if (created !== undefined && this.#metastore.hasId(id)) this.#metastore.remove(created.name)
      this.#background(`deleting the directory of snapshot ${id}`, this.#removeDirectory(id))
      throw error
    } finally {
      this.#beingMade.delete(id)
    }
  }

  #mountOf({ id, kind }: SnapshotRecord, lowerDirs: readonly string[]): Mount {
    const content = this.#directories.content(id)
    if (kind === 'view') return readOnlyMount(lowerDirs.length === 0 ? [content] : lowerDirs)
    return writableMount({ upperDir: content, workDir: this.#directories.work(id) }, lowerDirs)
  }

  /** With the owners that a container sees who is in a user namespace. */
  async #shiftedDirs(
    { id, labels }: SnapshotRecord,
    lowerDirs: readonly string[],
  ): Promise<readonly string[]> {
    const ids = IdMapping.of(labels)
    return ids === undefined ? lowerDirs : this.#shifted.of(id, lowerDirs, ids)
  }

  /** Of a snapshot that was forgotten; not before that is on disk, or a power cut would leave the snapshot without it. */
  async #removeDirectory(id: number): Promise<void> {
    await this.#metastore.wal.flushed()
    await this.#shifted.release(id)
    await this.#directories.remove(id)
  }

  /** The directories of the snapshot `topId` and its parents, topmost first; lazy layers are mounted. */
  async #lowerDirs(topId: number | undefined, signal: AbortSignal): Promise<string[]> {
    if (topId === undefined) return []
    const lowerDirs: string[] = []
    for (const run of runsOf(this.#metastore.chain(topId))) {
      if (Array.isArray(run)) lowerDirs.push(...(await this.#layers.lowerDirs(run, signal)))
      else lowerDirs.push(this.#contentOf(run.id))
    }
    return lowerDirs
  }

  #contentOf(id: number): string {
    const content = this.#directories.content(id)
    if (!this.#lost.has(id)) return content
    throw new SnapshotError(
      'DATA_LOSS',
      `${content} is gone, and with it a layer: remove the images that have it and pull them again`,
    )
  }

  /** Runs before anything is served: the only writer of directories is then this. */
  async #recover(): Promise<void> {
    const names = await this.#directories.names()
    const ids = new Set(names.map(Number))
    for (const id of ids) if (Number.isSafeInteger(id)) this.#metastore.skipIds(id)
    const lost = new Set<number>()
    for (const record of this.#records()) {
      if (!hasDirectory(record) || ids.has(record.id)) continue
      // A power cut can take a directory whose row is on disk. What was in it was not on disk either.
      if (record.kind === 'committed') {
        lost.add(record.id)
        this.#log.warn({ snapshot: record.name }, 'the directory of a committed snapshot is gone')
      } else await this.#directories.create(record.id, record.kind)
    }
    this.#lost = lost
    await this.#deleteOrphans()
  }

  /** Begins to delete the directories that no snapshot has. */
  async #deleteOrphans(): Promise<void> {
    for (const id of await this.#shifted.ids()) {
      if (!this.#beingMade.has(id) && !this.#metastore.hasId(id)) await this.#shifted.release(id)
    }
    for (const name of await this.#directories.names()) {
      const id = Number(name)
      if (this.#beingMade.has(id) || (Number.isSafeInteger(id) && this.#metastore.hasId(id)))
        continue
      const removed = this.#metastore.wal.flushed().then(() => this.#directories.remove(name))
      this.#background(`deleting the orphaned directory ${name}`, removed)
    }
  }

  *#records(): Generator<SnapshotRecord, void> {
    let after = 0
    for (;;) {
      const page = this.#metastore.page(after, PAGE_SNAPSHOTS)
      const last = page.at(-1)
      if (last === undefined) return
      yield* page
      after = last.id
    }
  }

  #background(doing: string, work: Promise<void>): void {
    const done = work.catch((error: unknown) => {
      this.#log.warn({}, `${doing} failed: ${String(error)}`)
    })
    this.#inBackground.add(done)
    void done.finally(() => this.#inBackground.delete(done))
  }

  async #settled(): Promise<void> {
    while (this.#inBackground.size > 0) await Promise.all(this.#inBackground)
  }
}

/** Without the layers below, a layer's whiteouts and the directories that its tar does not name come out wrong; and a claim has no Commit. */
function unpackedSideBySide(key: string): SnapshotError {
  return new SnapshotError(
    'FAILED_PRECONDITION',
    `snapshot ${key} is of a layer without its parent: containerd unpacks layers side by side, which this snapshotter does not; take "rebase" out of the capabilities of its proxy plugin in /etc/containerd/config.toml, and restart containerd`,
  )
}

/** Lazy layers and views of a parent have no content of their own. */
function hasDirectory(
  snapshot: Pick<SnapshotRecord, 'kind' | 'parent'> & { layer?: number | undefined },
): boolean {
  if (snapshot.layer !== undefined) return false
  return snapshot.kind !== 'view' || snapshot.parent === undefined
}

/** The chain with neighbouring lazy layers together: they may be merged. */
function runsOf(chain: readonly ChainLink[]): (ChainLink | { layer: number }[])[] {
  const runs: (ChainLink | { layer: number }[])[] = []
  for (const link of chain) {
    const last = runs.at(-1)
    if (link.layer === undefined) runs.push(link)
    else if (Array.isArray(last)) last.push({ layer: link.layer })
    else runs.push([{ layer: link.layer }])
  }
  return runs
}

/** The fields that containerd's filters know of a snapshot. */
function fieldsOf(snapshot: SnapshotInfo): FieldOf {
  return ([field, ...rest]) => {
    if (field === 'name') return snapshot.name
    if (field === 'kind') return snapshot.kind
    // Present for every snapshot, and empty for one without a parent.
    if (field === 'parent') return snapshot.parent ?? ''
    if (field === 'labels') return snapshot.labels.get(rest.join('.'))
    return undefined
  }
}
