import { hash } from 'node:crypto'
import { changeLoopFile, LOOP_SECTOR_BYTES, listLoops } from '../kernel/loop-device.ts'
import type { LayerPlaces } from './layer-places.ts'

/** Hex digits of a root's part in a tag, and of a layer's: 63 bytes are all there is. */
const ROOT_CHARS = 12
const LAYER_CHARS = 32

/** What a layer file is, on this node or in an agent's memory before us: the same name is the same bytes. */
export type LayerIdentity = {
  readonly blobCid: string
  /** By what the blob is read: another table may lay its bytes out otherwise. */
  readonly format: string
  /** Of the layer file, in bytes. */
  readonly layerSize: number
}

/** Which file a loop device of a layer reads. */
export type DeviceState =
  /** The layer's file in our FUSE file system. */
  | 'fuse'
  /** The plain file. */
  | 'plain'
  /** Neither: a FUSE connection that is gone, or a file that was there before. Its reads fail. */
  | 'lost'

export type LayerDevice = {
  readonly path: string
  readonly state: DeviceState
}

/**
 * The loop devices between layer files and the file systems that are mounted from them. What such a device reads can be changed
 * while containers use it, and whoever comes after us finds it by its tag: the kernel keeps it, no file of ours does.
 */
export class LayerDevices {
  readonly #places: LayerPlaces
  readonly #prefix: string
  readonly #identityOf: (layer: number) => LayerIdentity | undefined
  /** The last that was begun: see `turn`. */
  #turning: Promise<unknown> = Promise.resolve()

  /** `root` keeps the agents of one machine apart. */
  constructor(
    { root, places }: { readonly root: string; readonly places: LayerPlaces },
    identityOf: (layer: number) => LayerIdentity | undefined,
  ) {
    this.#places = places
    this.#prefix = `ipdr:${hash('sha256', root).slice(0, ROOT_CHARS)}:`
    this.#identityOf = identityOf
  }

  /** For devices of metadata images, which nobody looks for. */
  get imageTag(): string {
    return `${this.#prefix}meta`
  }

  /** Of a layer's devices. Not its id, which another layer has once the catalog was lost. */
  tagOf(layer: number): string {
    const identity = this.#identityOf(layer)
    if (identity === undefined) throw new Error(`layer ${layer} is not known`)
    const { blobCid, format, layerSize } = identity
    const name = hash('sha256', `${blobCid} ${format} ${layerSize}`).slice(0, LAYER_CHARS)
    return `${this.#prefix}${name}`
  }

  /** Whether a loop device shows all of the layer: the kernel cuts off what is no whole sector. */
  fits(layer: number): boolean {
    return (this.#identityOf(layer)?.layerSize ?? 0) % LOOP_SECTOR_BYTES === 0
  }

  /** The devices of each of these layers that has any. */
  find(layers: readonly number[]): Map<number, LayerDevice[]> {
    const byTag = new Map(layers.map((layer) => [this.tagOf(layer), layer]))
    const found = new Map<number, LayerDevice[]>()
    for (const { path, tag, backingPath } of listLoops(this.#prefix)) {
      const layer = byTag.get(tag)
      if (layer === undefined) continue
      const devices = found.get(layer) ?? []
      devices.push({ path, state: this.#stateOf(layer, backingPath) })
      found.set(layer, devices)
    }
    return found
  }

  /** Devices of layers that none of these is: what is mounted from them has lost its bytes for good. */
  strays(layers: readonly number[]): string[] {
    const known = new Set([this.imageTag, ...layers.map((layer) => this.tagOf(layer))])
    return listLoops(this.#prefix).flatMap(({ path, tag }) => (known.has(tag) ? [] : [path]))
  }

  /**
   * Has a device read the layer's file of that kind from now on. Rejects with KernelError. One after the other: each keeps one of libuv's few
   * threads waiting for reads that are under way, and to answer those may take another of them.
   */
  async turn(device: LayerDevice, layer: number, to: 'fuse' | 'plain'): Promise<void> {
    const places = this.#places
    const path = to === 'plain' ? places.dataPath(layer) : places.fusePath(layer)
    const turned = this.#turning.then(() => changeLoopFile(device.path, path))
    this.#turning = turned.catch(() => undefined)
    await turned
  }

  #stateOf(layer: number, backingPath: string): DeviceState {
    if (backingPath === this.#places.dataPath(layer)) return 'plain'
    return backingPath === this.#places.fusePath(layer) ? 'fuse' : 'lost'
  }
}
