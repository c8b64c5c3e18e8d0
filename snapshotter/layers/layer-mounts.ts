import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, rmdirSync } from 'node:fs'
import { mkdir, readdir, readFile, rm, rmdir } from 'node:fs/promises'
import { basename } from 'node:path'
import { z } from 'zod'
import type { BlobStore } from '../blobs/blob-store.ts'
import { mountErofs, unmountErofs } from '../erofs/mount-image.ts'
import { LayerError } from '../errors.ts'
import { LOOP_SECTOR_BYTES } from '../kernel/loop-device.ts'
import { listMounts } from '../kernel/mountinfo.ts'
import type { Log } from '../log.ts'
import type { LayerRecord } from './catalog.ts'
import { writeDurably } from './durable-file.ts'
import { sumOf, sumOfFile } from './file-sums.ts'
import type { LayerDevice, LayerDevices } from './layer-devices.ts'
import { fuseInode, type LayerPlaces, layerOfInode } from './layer-places.ts'
import { metadataImage } from './metadata-image.ts'
import type { TableThread } from './table-thread.ts'

/** How a mount gets the bytes of its layers. */
export type MountKind =
  /** At least one layer's come through FUSE. */
  | 'fuse'
  /** All from files on disk: it needs no process of ours. */
  | 'plain'

export type LazyMount = {
  readonly target: string
  readonly kind: MountKind
  /** Bottom first; more than one in a merged mount. */
  readonly layers: readonly number[]
}

/** One that the kernel is making. */
type MountUnderway = {
  readonly layers: readonly number[]
  /** One of its layers was to be taken down meanwhile. */
  isReleased: boolean
}

type HeldMount = {
  mount: LazyMount
  readonly isOverLoops: boolean
  readonly pins: DisposableStack
}

/** How the kernel opens images and layer files. */
export type MountedFrom =
  /** As they are: fastest, and for ever the file that it was. */
  | 'files'
  /** Over loop devices, of which what they read can be changed. */
  | 'loops'

/** What decides how a layer is mounted on the ones below it. */
export type LayerTraits = Pick<LayerRecord, 'id' | 'inheritsDirs' | 'hidesBelow'>

/** Hex digits of a derived image's name. 12 are 48 bits: 10,000 images collide with a chance of 2 in 10 million. */
const DERIVED_ID_CHARS = 12

/** Beside a derived image: the layers that its tree was made from, and those that its content lies in. */
const derivedRecord = z.strictObject({
  chain: z.array(z.number().int()),
  devices: z.array(z.number().int()),
  /** SHA-256 of the image; absent from those of earlier agents. */
  sum: z.string().optional(),
})
type DerivedRecord = z.infer<typeof derivedRecord>

/** A metadata image made from the tables of `chain`, whose content lies in the layers of `devices`; both bottom first. */
type Derived = {
  readonly chain: readonly number[]
  readonly devices: readonly number[]
  readonly derive: 'merge' | 'inherit'
}

type Options = {
  readonly places: LayerPlaces
  /** For mounts through FUSE; those of plain files need no change. */
  readonly fuseMountsFrom: MountedFrom
  /** For all others: `loops` on a kernel that knows nothing else. */
  readonly plainMountsFrom: MountedFrom
  readonly mergeLayersMin: number
  readonly readAheadKb: number
}

type Parts = {
  readonly store: Pick<BlobStore, 'get' | 'layers' | 'read'>
  readonly log: Log
  readonly tables: TableThread
  readonly devices: LayerDevices
  /** Whether all bytes of the layer were found to be what its image promised. */
  readonly isVerified: (layer: number) => boolean
  readonly signal: AbortSignal
}

/**
 * The EROFS mounts of lazy layers. A layer is mounted once and shared by every image that has it; a chain of many
 * layers is mounted once as a whole. A mount made while a layer was still arriving reads through FUSE, over loop devices. Once
 * the layer is complete and checked these are turned to its plain file, so that containers that run need us no more; new ones get
 * a second mount straight on that file, which is faster.
 */
export class LayerMounts {
  readonly #options: Options
  readonly #parts: Parts
  readonly #mounts = new Map<string, HeldMount>()
  /** Layers that are read through FUSE even when they are complete, and by how many who want that. */
  readonly #watched = new Map<number, number>()
  /** The last that was asked for of each layer: it is mounted, or turned to its plain file, but not both at once. */
  readonly #turns = new Map<number, Promise<void>>()
  readonly #underway = new Set<MountUnderway>()
  /** Derived metadata images being written, by id: two containers of an image may start at once. */
  readonly #deriving = new Map<string, Promise<void>>()
  /** Those that were written, or found to be what was written, since this process started. */
  readonly #soundDerived = new Set<string>()

  constructor(options: Options, parts: Parts) {
    this.#options = options
    this.#parts = parts
    mkdirSync(options.places.mountsDir, { recursive: true })
    mkdirSync(options.places.derivedDir, { recursive: true })
  }

  /**
   * Finds the mounts that an agent before us made, and takes those out of the tree whose layers are not held: their numbers may go to
   * others, which must not be shown by them. Who stands on one keeps it. Call once, after all layers were added to the store.
   */
  async recover(): Promise<void> {
    const held = new Set(this.#layersHeld())
    await this.#removeDerived(({ chain }) => !chain.every((layer) => held.has(layer)))
    const found = this.#parts.devices.find([...held])
    for (const { target, type, source } of listMounts(this.#options.places.mountsDir)) {
      if (type !== 'erofs') continue
      const name = basename(target)
      const isDerived = name.startsWith('x')
      const layers = isDerived
        ? ((await this.#recordOf(derivedId(name)).catch(() => undefined))?.devices ?? [])
        : [Number.parseInt(name, 10)]
      if (layers.length === 0 || !layers.every((layer) => held.has(layer))) {
        unmountErofs(target)
        rmdirSync(target)
        continue
      }
      const isOverLoops = source.startsWith('/dev/loop')
      const isTurned = (layer: number): boolean =>
        isOverLoops && (found.get(layer) ?? []).every(({ state }) => state === 'plain')
      const kind: MountKind = name.endsWith('p') || layers.every(isTurned) ? 'plain' : 'fuse'
      const mount = { target, kind, layers }
      this.#mounts.set(target, { mount, isOverLoops, pins: this.#pinsFor(mount) })
    }
  }

  /**
   * Mends what containers have over loop devices from a FUSE connection that is gone, and turns to its plain file what was completed
   * since. Call once, when the kernel is answered. Never rejects.
   */
  async mend(): Promise<{ readonly strays: readonly string[] }> {
    const { devices, log } = this.#parts
    const layers = this.#layersHeld()
    const found = devices.find(layers)
    for (const [layer, itsDevices] of found) {
      // One that is complete is turned to its plain file below.
      if (this.#isSettled(layer)) continue
      for (const device of itsDevices)
        if (device.state === 'lost') await this.#revive(layer, device)
    }
    for (const layer of found.keys()) await this.settle(layer)
    const strays = devices.strays(layers)
    for (const path of strays) {
      log.error(
        { device: path },
        `containers on ${path} read a layer that this agent does not know, and get EIO for what is not in the page cache: restart their pods`,
      )
    }
    return { strays }
  }

  /**
   * Turns what containers have of a layer to its plain file, if it is complete and was checked: from then on they need no process of
   * ours. Never rejects: where that fails they go on through FUSE.
   */
  settle(layer: number): Promise<void> {
    return this.#inTurn([layer], () => this.#settle(layer)).catch((error: unknown) =>
      this.#parts.log.warn(
        { layer, reason: String(error) },
        `containers go on reading layer ${layer} through the agent, though it is complete: ${String(error)}`,
      ),
    )
  }

  async #settle(layer: number): Promise<void> {
    const { store, devices, log } = this.#parts
    if (!this.#isSettled(layer)) return
    const toTurn = (devices.find([layer]).get(layer) ?? []).filter(({ state }) => state !== 'plain')
    const held = store.get(fuseInode(layer))
    if (toTurn.length === 0 || held === undefined) return
    // Before the kernel reads it behind our back: nothing of it may be evicted from here on.
    const mounts = [...this.#mounts.values()].filter(
      ({ mount, isOverLoops }) =>
        isOverLoops && mount.kind === 'fuse' && mount.layers.includes(layer),
    )
    for (const { pins } of mounts) pins.use(held.pin())
    // There are mounts too that are no longer in our tree, but under containers all the same.
    held.file.noteMount()
    // Still, now that nothing can be evicted.
    if (!this.#isSettled(layer)) return
    for (const device of toTurn) await devices.turn(device, layer, 'plain')
    log.info({ layer, devices: toTurn.length }, 'a complete layer needs the agent no more')
    for (const each of mounts) {
      const left = devices.find(each.mount.layers)
      const isFree = [...left.values()].flat().every(({ state }) => state === 'plain')
      if (isFree) each.mount = { ...each.mount, kind: 'plain' }
    }
  }

  list(): LazyMount[] {
    return [...this.#mounts.values()].map(({ mount }) => mount)
  }

  /** Whether any mount shows this layer. */
  isMounted(layer: number): boolean {
    return this.list().some(({ layers }) => layers.includes(layer))
  }

  /** Mounts the layers (bottom first) that are not yet mounted. Returns directories for overlay, topmost first. */
  async lowerDirs(layers: readonly LayerTraits[], signal: AbortSignal): Promise<string[]> {
    const bottom = layers.findLastIndex(({ hidesBelow }) => hidesBelow)
    const shown = layers.slice(Math.max(0, bottom))
    const ids = shown.map(({ id }) => id)
    if (ids.length >= this.#options.mergeLayersMin) {
      return [await this.#mountDerived({ chain: ids, devices: ids, derive: 'merge' }, signal)]
    }
    const dirs = shown.map(({ id, inheritsDirs }, position) =>
      !inheritsDirs || position === 0
        ? this.#mountLayer(id)
        : this.#mountInheriting(ids.slice(0, position + 1), signal),
    )
    return (await Promise.all(dirs)).toReversed()
  }

  /** Mounts of these layers go through FUSE until it is disposed of, so that their reads can be seen. */
  readThroughFuse(layers: readonly number[]): Disposable {
    const add = (change: 1 | -1): void => {
      for (const id of layers) this.#watched.set(id, (this.#watched.get(id) ?? 0) + change)
    }
    add(1)
    const watching = new DisposableStack()
    watching.defer(() => {
      add(-1)
      for (const id of layers) void this.settle(id)
    })
    return watching
  }

  /** Takes down every mount that shows this layer. Containers that still run on one keep it until they end. */
  release(layer: number): void {
    for (const underway of this.#underway) {
      if (underway.layers.includes(layer)) underway.isReleased = true
    }
    for (const held of this.#mounts.values()) {
      if (held.mount.layers.includes(layer)) this.#unmount(held)
    }
  }

  /** Takes down everything. */
  releaseAll(): void {
    for (const underway of this.#underway) underway.isReleased = true
    for (const held of this.#mounts.values()) this.#unmount(held)
  }

  #mountLayer(layer: number): Promise<string> {
    return this.#mountOnce([layer], {
      name: String(layer),
      imagePath: this.#options.places.metadataPath(layer),
    })
  }

  /** Where these layers are mounted from now on: at `name`, and a `p` behind it if that is from plain files. */
  async #mountOnce(
    layers: readonly number[],
    { name, imagePath }: { readonly name: string; readonly imagePath: string },
  ): Promise<string> {
    const placed = (): Pick<LazyMount, 'target' | 'kind'> => {
      const kind = this.#kindFor(layers)
      const path = `${this.#options.places.mountsDir}/${name}`
      return { target: kind === 'plain' ? `${path}p` : path, kind }
    }
    // As it is for all layers of an image that runs already.
    const now = placed()
    const isAtRest = !layers.some((layer) => this.#turns.has(layer))
    if (isAtRest && this.#mounts.get(now.target)?.mount.kind === now.kind) return now.target
    return await this.#inTurn(layers, async () => {
      const { target, kind } = placed()
      if (!this.#has({ target, kind })) await this.#mount({ target, kind, layers }, imagePath)
      return target
    })
  }

  /** Does `work` when nothing that was asked for before is at work on any of these layers. */
  async #inTurn<T>(layers: readonly number[], work: () => Promise<T>): Promise<T> {
    const before = layers.flatMap((layer) => this.#turns.get(layer) ?? [])
    const { promise: turn, resolve: end } = Promise.withResolvers<void>()
    for (const layer of layers) this.#turns.set(layer, turn)
    try {
      await Promise.all(before)
      return await work()
    } finally {
      for (const layer of layers) {
        if (this.#turns.get(layer) === turn) this.#turns.delete(layer)
      }
      end()
    }
  }

  /** Whether there is such a mount. One through FUSE that was turned to plain files makes room: somebody wants to see reads again. */
  #has({ target, kind }: Pick<LazyMount, 'target' | 'kind'>): boolean {
    const held = this.#mounts.get(target)
    if (held === undefined || held.mount.kind === kind) return held !== undefined
    this.#unmount(held)
    return false
  }

  /** Mounts the last of `chain` with the attributes of directories that only the layers below it mention. */
  #mountInheriting(chain: readonly number[], signal: AbortSignal): Promise<string> {
    return this.#mountDerived({ chain, devices: chain.slice(-1), derive: 'inherit' }, signal)
  }

  async #mountDerived(derived: Derived, signal: AbortSignal): Promise<string> {
    const { places } = this.#options
    const { chain, devices } = derived
    const id = createHash('sha256')
      .update(`${chain.join(' ')}/${devices.join(' ')}`)
      .digest('hex')
      .slice(0, DERIVED_ID_CHARS)
    const writing = this.#deriving.get(id) ?? this.#writeDerived(id, derived)
    this.#deriving.set(id, writing)
    await writing.finally(() => this.#deriving.delete(id))
    signal.throwIfAborted()
    const imagePath = `${places.derivedDir}/${id}.erofs`
    return this.#mountOnce(devices, { name: `x${id}`, imagePath })
  }

  async #writeDerived(id: string, { chain, devices, derive }: Derived): Promise<void> {
    const { places } = this.#options
    const { store, tables, signal } = this.#parts
    const path = `${places.derivedDir}/${id}.erofs`
    if (await this.#isDerived(id, path)) return
    const { image } = await metadataImage(
      {
        tocs: await Promise.all(chain.map((layer) => readFile(places.tocPath(layer)))),
        derive,
        devices: devices.map((layer) => ({
          tag: `layer ${layer}`,
          bytes: store.get(fuseInode(layer))?.file.map.layerSize ?? 0,
        })),
      },
      {
        tables,
        // Not the caller's signal: another container may wait for the same image.
        read: ({ device, start, end }) =>
          store.read(
            fuseInode(devices[device] ?? 0),
            { start, end },
            { priority: 'foreground', signal },
          ),
      },
    )
    await writeDurably(
      `${places.derivedDir}/${id}.json`,
      Buffer.from(JSON.stringify({ chain, devices, sum: sumOf(image) })),
    )
    // Last, since its presence says that both are there.
    await writeDurably(path, image)
    this.#soundDerived.add(id)
  }

  /** Whether a derived image is there as it was written. One that a disk has damaged is taken down, to be made again. */
  async #isDerived(id: string, path: string): Promise<boolean> {
    if (!existsSync(path)) return false
    if (this.#soundDerived.has(id)) return true
    const record = await this.#recordOf(id).catch(() => undefined)
    const sum = record?.sum
    if (record !== undefined && (sum === undefined || (await sumOfFile(path)) === sum)) {
      this.#soundDerived.add(id)
      return true
    }
    this.#parts.log.error(
      { image: path },
      `the disk had damaged ${path}, which shows several layers as one; it is made again, but containers that run on it may have seen wrong names: restart their pods, and look at the disk's health`,
    )
    this.#unmountDerived(id)
    return false
  }

  async #recordOf(id: string): Promise<DerivedRecord> {
    const text = await readFile(`${this.#options.places.derivedDir}/${id}.json`, 'utf8')
    return derivedRecord.parse(JSON.parse(text))
  }

  #kindFor(layers: readonly number[]): MountKind {
    return layers.every((layer) => this.#isSettled(layer)) ? 'plain' : 'fuse'
  }

  #layersHeld(): number[] {
    return [...this.#parts.store.layers()].map(({ inode }) => layerOfInode(inode))
  }

  /** Whether a layer can be read from its plain file, and nobody wants to see its reads. */
  #isSettled(layer: number): boolean {
    const { store, isVerified } = this.#parts
    return (
      (this.#watched.get(layer) ?? 0) === 0 &&
      isVerified(layer) &&
      (store.get(fuseInode(layer))?.file.isComplete ?? false)
    )
  }

  /** Gives containers whose FUSE connection is gone the new one: the reads that failed meanwhile are made again. */
  async #revive(layer: number, device: LayerDevice): Promise<void> {
    const { devices, log } = this.#parts
    try {
      await devices.turn(device, layer, 'fuse')
      log.warn(
        { layer, device: device.path },
        'mended a mount whose FUSE connection was gone; containers on it got EIO meanwhile',
      )
    } catch (error) {
      log.error(
        { layer, device: device.path, reason: String(error) },
        `containers on ${device.path} have lost their FUSE connection and cannot be given the new one (${String(error)}): restart their pods`,
      )
    }
  }

  /** Rejects with KernelError, and with LayerError ABORTED if one of the layers was to be taken down meanwhile. */
  async #mount(mount: LazyMount, imagePath: string): Promise<void> {
    const { places, readAheadKb } = this.#options
    const { devices, log } = this.#parts
    const { target, kind, layers } = mount
    const isOverLoops = this.#isOverLoops(mount)
    const pins = this.#pinsFor(mount)
    const underway = { layers, isReleased: false }
    this.#underway.add(underway)
    try {
      await mkdir(target, { recursive: true })
      await mountErofs({
        imagePath,
        devicePaths: layers.map((layer) =>
          kind === 'plain' ? places.dataPath(layer) : places.fusePath(layer),
        ),
        target,
        readAheadKb,
        ...(isOverLoops && {
          loopTags: {
            image: devices.imageTag,
            devices: layers.map((layer) => devices.tagOf(layer)),
          },
        }),
      })
    } catch (error) {
      pins[Symbol.dispose]()
      await rmdir(target).catch(() => undefined)
      throw error
    } finally {
      this.#underway.delete(underway)
    }
    const held = { mount, isOverLoops, pins }
    this.#mounts.set(target, held)
    if (underway.isReleased) {
      this.#unmount(held)
      const names = layers.join(', ')
      throw new LayerError(
        'ABORTED',
        `layer ${names} was taken down while it was mounted: try again`,
      )
    }
    log.debug({ target, kind }, 'mounted a lazy layer')
  }

  /** Throws LayerError FAILED_PRECONDITION if a layer cannot be mounted in any way that this kernel has. */
  #isOverLoops({ kind, layers }: LazyMount): boolean {
    const { fuseMountsFrom, plainMountsFrom } = this.#options
    if ((kind === 'fuse' ? fuseMountsFrom : plainMountsFrom) === 'files') return false
    if (layers.every((layer) => this.#parts.devices.fits(layer))) return true
    // It stays with FUSE then.
    if (plainMountsFrom === 'files') return false
    throw new LayerError(
      'FAILED_PRECONDITION',
      `layer ${layers.join(', ')} has a size that is no multiple of ${LOOP_SECTOR_BYTES}, and this kernel mounts layers over loop devices only: boot one from 6.12 on`,
      { layers: layers.join(' ') },
    )
  }

  /** The kernel reads a plain file behind our back: nothing of it may be evicted while it is mounted. */
  #pinsFor({ kind, layers }: LazyMount): DisposableStack {
    const pins = new DisposableStack()
    if (kind === 'fuse') return pins
    for (const layer of layers) {
      const held = this.#parts.store.get(fuseInode(layer))
      if (held !== undefined) pins.use(held.pin())
    }
    return pins
  }

  #unmount({ mount, pins }: HeldMount): void {
    unmountErofs(mount.target)
    this.#mounts.delete(mount.target)
    rmdirSync(mount.target)
    pins[Symbol.dispose]()
  }

  /** Deletes derived images that a layer, which is about to go, has a part in. */
  async removeDerivedFrom(layer: number): Promise<void> {
    await this.#removeDerived(({ chain }) => chain.includes(layer))
  }

  async #removeDerived(isToGo: (record: DerivedRecord) => boolean): Promise<void> {
    const { derivedDir } = this.#options.places
    for (const name of await readdir(derivedDir)) {
      if (!name.endsWith('.json')) continue
      const id = name.slice(0, -'.json'.length)
      const record = await this.#recordOf(id).catch(() => undefined)
      // One that cannot be read says nothing of its image: it is made anew.
      if (record !== undefined && !isToGo(record)) continue
      this.#unmountDerived(id)
      this.#soundDerived.delete(id)
      await rm(`${derivedDir}/${id}.erofs`, { force: true })
      await rm(`${derivedDir}/${id}.json`, { force: true })
    }
  }

  #unmountDerived(id: string): void {
    for (const held of this.#mounts.values()) {
      if (basename(held.mount.target).startsWith(`x${id}`)) this.#unmount(held)
    }
  }
}

/** `x0123456789abp` → `0123456789ab` */
function derivedId(mountName: string): string {
  return mountName.slice(1, 1 + DERIVED_ID_CHARS)
}
