import { setMaxListeners } from 'node:events'
import type { BlobStore } from '../blobs/blob-store.ts'
import type { LazyLayer } from '../blobs/lazy-layer.ts'
import type { Labels } from '../containerd/labels.ts'
import { isEncrypted } from '../encryption/layer-encryption.ts'
import { CodedError, ImageError, LayerError } from '../errors.ts'
import type { ImagesOfNode, RememberedImage, RememberedLayer } from '../images-of-node.ts'
import type { Log } from '../log.ts'
import { IMAGE_HOST } from '../oci/reference.ts'
import type {
  ClaimedLayer,
  ClaimRequest,
  LazyLayers,
  RecalledLayer,
} from '../snapshots/lazy-layers.ts'
import type { Mount } from '../snapshots/mounts.ts'
import { tablesNamed } from '../toc/table-annotations.ts'
import { unlessAborted } from '../unless-aborted.ts'
import type { Catalog, ImageLayer, ImageRecord, LayerRecord } from './catalog.ts'
import { type DiskCheck, doesNotKeep } from './disk-check.ts'
import type { LayerBuilder } from './layer-builder.ts'
import type { LayerMounts } from './layer-mounts.ts'
import { fuseInode, layerOfInode } from './layer-places.ts'
import { type Verdict, verifyLayer } from './layer-verifier.ts'
import { MANIFEST_DIGEST_LABEL, pullLabels } from './pull-labels.ts'
import type { RegistryImages } from './registry-images.ts'
import type { SharedLeaves } from './shared-leaves.ts'

/** Between the manifest of a pull and its last layer lies less than this. 1 h: containerd and the kubelet give up before. */
const PULL_LONGEST_MS = 3_600_000

/** How often a layer that fails its check is healed and checked again. 3: a disk that has damaged more by then does not work. */
const HEALINGS_MAX = 3

/** Shows layers to the kernel under their inodes; the FUSE server. */
export type LayerServer = {
  add(held: LazyLayer): void
  remove(inode: number): void
}

/** Told of images that start, so that what they read can be fetched before, and learned. Returns at once. */
export type StartListener = {
  /** containerd pulls the image of these layers, bottom first; each is `ready` when it can be mounted. */
  pulling(layers: readonly ImageLayer[], ready: readonly Promise<LayerRecord>[]): void
  /** A container is about to start on these layers; of `cold` nothing is in the page cache, all reads come to us. */
  mounted(layers: readonly LayerRecord[], cold: ReadonlySet<number>): void
}

type Parts = {
  readonly catalog: Catalog
  readonly store: BlobStore
  readonly builder: LayerBuilder
  readonly mounts: LayerMounts
  readonly shared: SharedLeaves
  readonly disk: DiskCheck
  /** Undefined where no registry is ever asked. */
  readonly registryImages: RegistryImages | undefined
  /** Undefined on a kernel that cannot mount lazily: then no layer is ever claimed. */
  readonly server: LayerServer | undefined
  /** Images of the node, whether or not the catalog knows them. Rejects if nobody can be asked. */
  readonly remembered: ImagesOfNode['imagesWith']
  /** Has the catalog know an image on IPFS. Rejects if it cannot be had, or may not run. */
  readonly resolve: (image: RememberedImage, signal: AbortSignal) => Promise<void>
  /** Rejects if an image may not run by the policies of now. */
  readonly recheck: (image: ImageRecord, signal: AbortSignal) => Promise<void>
  readonly log: Log
  readonly starts: StartListener
  readonly onVerificationFailure: (what: 'layer' | 'toc') => void
  /** Told of a layer that was found not to be what its image promised, once nothing more can be read of it. */
  readonly onSpoiled: (layer: LayerRecord) => void
}

export type CheckedLayer = {
  /** Whether all bytes of it are here, so that it was checked as a whole. */
  readonly isWhole: boolean
  /** Units that had to be fetched again. */
  readonly healedUnits: number
  /** Whether its table of contents or its metadata image had to be made again. */
  readonly healedTables: boolean
}

/** A layer on its way, and by which side index. */
type Building = { readonly record: Promise<LayerRecord>; readonly indexCid: string | undefined }

/** The lazy layers of this node: from a chain ID that containerd names to a directory that overlayfs can stand on. */
export class Layers implements LazyLayers, AsyncDisposable {
  readonly #parts: Parts
  readonly #closing = new AbortController()
  /** Layers being built, by the CID of their blob: images pulled at once share them. */
  readonly #building = new Map<string, Building>()
  readonly #verifying = new Map<number, Promise<void>>()
  /** Layers whose tables are looked at before they are mounted, or are made again. */
  readonly #sound = new Map<number, Promise<LayerRecord>>()
  /** Layers being deleted, by the CID of their blob: one that is asked for meanwhile is built anew. */
  readonly #removing = new Map<string, Promise<void>>()

  constructor(parts: Parts) {
    this.#parts = parts
    // Everything that waits anywhere in here listens to it.
    setMaxListeners(0, this.#closing.signal)
  }

  /**
   * Holds again what an agent before us had built, from this node's disk alone. A layer that is damaged here is forgotten, and
   * built again when it is next asked for; the others are not kept from starting.
   */
  async recover(): Promise<void> {
    const { catalog, store, builder, server, log, mounts } = this.#parts
    for (const record of catalog.layers()) {
      if (record.state === 'building') catalog.markLost(record.id)
      if (record.state !== 'ready') continue
      try {
        server?.add(await builder.reopen(record))
      } catch (error) {
        log.error(
          { layer: record.blobDigest, reason: String(error) },
          `layer ${record.blobDigest} is damaged on this node: it is fetched again when a container next starts on it`,
        )
        catalog.markLost(record.id)
      }
    }
    await mounts.recover()
    const swept = await store.sweep()
    if (swept.length > 0)
      log.info({ layers: swept.length }, 'deleted what half-built layers had left')
    for (const held of store.layers()) if (held.file.isComplete) this.completed(held)
  }

  async claim(request: ClaimRequest): Promise<ClaimedLayer | undefined> {
    const { layerChainId, labels, signal } = request
    const { catalog, server, log, starts, registryImages } = this.#parts
    const pulledImage = server && (await this.#fromRegistry(request))
    // It is downloaded by containerd, and no other image's word is enough to take a layer for one of its own.
    if (pulledImage === 'declined') return this.#claimVerified(layerChainId)
    const images = catalog
      .imagesWithChain(layerChainId)
      // Where no registry is asked any more, nothing of theirs could be read.
      .filter(({ reference }) => reference === undefined || registryImages !== undefined)
    const blobOf = ({ layers }: ImageRecord): string | undefined =>
      layers.find((layer) => layer.layerChainId === layerChainId)?.blobCid
    const usable = images.filter(
      (each) => catalog.layerByBlob(blobOf(each) ?? '')?.state !== 'corrupt',
    )
    const hint = labels.get(MANIFEST_DIGEST_LABEL)
    const hinted =
      usable.find(({ id }) => id === pulledImage?.id) ??
      usable.find(({ manifestDigest }) => manifestDigest === hint)
    // One that is corrupt is better named than passed over in silence.
    const candidates = usable.length === 0 ? images.slice(0, 1) : usable
    const image = await this.#trusted(hinted === undefined ? candidates : [hinted], signal)
    if (image === undefined) return undefined
    if (server === undefined) {
      log.info(
        { image: image.rootCid },
        'this kernel cannot mount lazily: containerd downloads the image whole',
      )
      return undefined
    }
    // All at once: containerd asks for one after the other, and a pull should take as long as the slowest.
    const ready = image.layers.map((layer) => this.ready(layer))
    for (const each of ready) each.catch(() => undefined)
    starts.pulling(image.layers, ready)
    const asked = ready[image.layers.findIndex((layer) => layer.layerChainId === layerChainId)]
    if (asked === undefined) return undefined
    const record = await unlessAborted(asked, signal)
    // Whichever of them containerd is pulling, it would take this layer for its own.
    const pulled = images.filter(({ seenAtMs }) => Date.now() - seenAtMs < PULL_LONGEST_MS)
    const isContested =
      new Set(pulled.map(blobOf)).size > 1 || !this.#isDescribedAlike(record.blobCid)
    if (isContested && !record.verified) await this.fetchWhole(record, signal)
    return this.#claimed(record)
  }

  async #claimed(record: LayerRecord): Promise<ClaimedLayer> {
    const { catalog } = this.#parts
    catalog.touchLayer(record.id)
    // Before a snapshot names it.
    await catalog.wal.flushed()
    const { id, diffId, blobSize, inodes } = record
    return { layer: id, diffId, size: BigInt(blobSize), inodes: BigInt(inodes) }
  }

  /**
   * The image that is pulled from a registry, of which every layer can be mounted; undefined if none is pulled from one, as far
   * as labels tell. All of it or nothing: what lies above a layer that containerd has to download, it downloads as well.
   */
  async #fromRegistry(request: ClaimRequest): Promise<ImageRecord | 'declined' | undefined> {
    const { registryImages } = this.#parts
    const image = await registryImages?.find(request, request.signal)
    if (registryImages === undefined || image === undefined || image === 'declined') return image
    try {
      await this.checkRivals(image, request.signal)
      const ready = Promise.all(image.layers.map((layer) => this.ready(layer)))
      await unlessAborted(ready, request.signal)
      registryImages.used(image)
      return image
    } catch (error) {
      if (request.signal.aborted || !(error instanceof CodedError)) throw error
      registryImages.decline(image, error.message)
      return 'declined'
    }
  }

  async recall(
    layerChainId: string,
    signal: AbortSignal,
  ): Promise<readonly RecalledLayer[] | undefined> {
    const { catalog, log, resolve } = this.#parts
    const [known] = catalog.imagesWithChain(layerChainId)
    if (known !== undefined) {
      const claimed = await this.#claimAll(known.layers, layerChainId, signal)
      if (claimed !== undefined) return claimed
    }
    const images = await this.#remembered(layerChainId, signal)
    for (const image of images) {
      try {
        if (isOnIpfs(image)) await resolve(image, signal)
        const claimed = await this.#claimAll(image.layers, layerChainId, signal, image)
        if (claimed !== undefined) return claimed
      } catch (error) {
        signal.throwIfAborted()
        const reason = error instanceof Error ? error.message : String(error)
        const sentence = `a lost snapshot cannot be made anew from ${image.reference}: ${reason}`
        log.warn({ image: image.reference, layerChainId, reason }, sentence)
      }
    }
    const [first] = images
    if (first === undefined) return undefined
    return upTo(first.layers, layerChainId).map((layer) => ({
      layerChainId: layer.layerChainId,
      unpack: (mounts, signal) => unpackByAny(images, { layer, mounts }, signal),
    }))
  }

  /** Those on IPFS first: they need nothing that containerd may have thrown away. */
  async #remembered(layerChainId: string, signal: AbortSignal): Promise<RememberedImage[]> {
    try {
      const images = await this.#parts.remembered(layerChainId, signal)
      return images.toSorted((a, b) => Number(isOnIpfs(b)) - Number(isOnIpfs(a)))
    } catch (error) {
      signal.throwIfAborted()
      const reason = error instanceof Error ? error.message : String(error)
      const sentence = `a snapshot was lost, and its image is not found: ${reason}`
      this.#parts.log.warn({ layerChainId, reason }, sentence)
      return []
    }
  }

  /** Undefined if one of them is not ours. */
  async #claimAll(
    layers: readonly { readonly layerChainId: string }[],
    layerChainId: string,
    signal: AbortSignal,
    image?: RememberedImage,
  ): Promise<RecalledLayer[] | undefined> {
    const recalled: RecalledLayer[] = []
    for (const { layerChainId: chainId } of upTo(layers, layerChainId)) {
      const labels: Labels = image === undefined ? new Map() : pullLabels(image, chainId)
      const claimed = await this.claim({ layerChainId: chainId, labels, signal })
      if (claimed === undefined) return undefined
      recalled.push({ layerChainId: chainId, claimed })
    }
    return recalled
  }

  /** A layer of which all is here and was checked: it is that tar, whoever asks. */
  async #claimVerified(layerChainId: string): Promise<ClaimedLayer | undefined> {
    const { catalog } = this.#parts
    const records = catalog
      .imagesWithChain(layerChainId)
      .flatMap(({ layers }) => layers.filter((layer) => layer.layerChainId === layerChainId))
      .map(({ blobCid }) => catalog.layerByBlob(blobCid))
    const verified = records.find((record) => record?.state === 'ready' && record.verified)
    return verified && !isEncrypted(verified.mediaType) ? this.#claimed(verified) : undefined
  }

  /** The first of some images that may run by the policies of now. Rejects with the first refusal if none may. */
  async #trusted(
    images: readonly ImageRecord[],
    signal: AbortSignal,
  ): Promise<ImageRecord | undefined> {
    let refusal: unknown
    for (const image of images) {
      try {
        await this.#parts.recheck(image, signal)
        return image
      } catch (error) {
        refusal ??= error
      }
    }
    if (refusal !== undefined) throw refusal
    return undefined
  }

  async lowerDirs(
    chain: readonly { readonly layer: number }[],
    signal: AbortSignal,
  ): Promise<readonly string[]> {
    const bottomFirst = chain.map(({ layer }) => layer).toReversed()
    const usable = Promise.all(bottomFirst.map((layer) => this.#mountable(layer)))
    const layers = await unlessAborted(usable, signal)
    const { mounts, starts } = this.#parts
    const before = new Set(mounts.list().map(({ target }) => target))
    const dirs = await mounts.lowerDirs(layers, signal)
    const fresh = mounts.list().filter(({ target, kind }) => kind === 'fuse' && !before.has(target))
    if (layers.length > 0) starts.mounted(layers, new Set(fresh.flatMap((mount) => mount.layers)))
    return dirs
  }

  /** Its bytes stay, for the next pull, until the store needs the room or `remove` is called. */
  async released(layer: number): Promise<void> {
    this.#parts.mounts.release(layer)
  }

  /**
   * The layer, once it can be mounted. Rejects as `LayerBuilder.build` and `LayerBuilder.checkAccess`, and with LayerError DATA_LOSS if the blob is here as
   * another tar than the image says.
   */
  async ready(layer: ImageLayer): Promise<LayerRecord> {
    const record = await this.#ofBlob(layer)
    await this.#parts.builder.checkAccess(record, layer)
    if (record.diffId === layer.diffId) return record
    // One blob is one tar. Snapshots are named by what images claim: this one would pass for another image's layer.
    if (!record.verified) await this.fetchWhole(record, this.#closing.signal)
    throw new LayerError(
      'DATA_LOSS',
      `layer ${layer.blobDigest} at ${layer.blobCid} is the tar ${record.diffId}, the image says ${layer.diffId}`,
      { digest: layer.blobDigest, cid: layer.blobCid },
    )
  }

  async #ofBlob(layer: ImageLayer): Promise<LayerRecord> {
    const { catalog } = this.#parts
    // Once it is gone, it is built anew.
    await this.#removing.get(layer.blobCid)?.catch(() => undefined)
    const known = catalog.layerByBlob(layer.blobCid)
    if (known?.state === 'ready') return known
    if (known?.state === 'corrupt') throw notAsPromised(layer)
    const running = this.#building.get(layer.blobCid)
    if (running !== undefined) return running.record
    // A layer is shared, and a side index is the word of one image's publisher: it speaks for no other image.
    const indexCid = catalog.agreedIndex(layer.blobCid)
    const record = this.#build({ ...layer, indexCid }).finally(() =>
      this.#building.delete(layer.blobCid),
    )
    this.#building.set(layer.blobCid, { record, indexCid })
    return record
  }

  /**
   * Checks that pods of a Kubernetes namespace may see these layers, which snapshots name. What somebody published in plain text as
   * well, and was found to be the same, is no secret. Rejects with LayerError PERMISSION_DENIED, and as `LayerKeys.authorize`.
   */
  async authorize(ids: readonly number[], namespace: string): Promise<void> {
    const { catalog, builder } = this.#parts
    for (const id of ids) {
      const record = catalog.layer(id)
      if (record === undefined || !isEncrypted(record.mediaType)) continue
      const isPublic = catalog
        .layersByDiffId(record.diffId)
        .some(({ verified, mediaType }) => verified && !isEncrypted(mediaType))
      if (!isPublic) await builder.authorize(record, namespace)
    }
  }

  /** Called when the last missing bytes of a layer have arrived. */
  completed(held: LazyLayer): void {
    void this.#verifyOnce(layerOfInode(held.inode))
  }

  /**
   * Makes sure that no other layer passes for one of these. A chain ID names bytes, but of a lazy layer only the CID is
   * checked at first: an image could claim the diff ID of a well-known base for bytes of its own, and containerd would use
   * that snapshot for the well-known image too. So where another blob claims the same diff ID, it is fetched whole
   * and checked before the new image is handed out. So is the same blob where it was built by a side index that this image does
   * not name, or where images name different tables of contents in it: that table may be wrong about names and bytes. Rejects
   * with BlockError if it cannot be fetched.
   */
  async checkRivals(image: ImageRecord, signal: AbortSignal): Promise<void> {
    await this.#checkRivalsOf(image.layers, signal)
    for (const layer of image.layers) await this.#checkTwins(layer, signal)
  }

  /**
   * The same before containerd pulls an image by itself, whose layers it takes from what is here under their chain IDs without
   * asking anybody. Rejects as `checkRivals`; an image of which nothing can be told is let pass.
   */
  async pullBegins(name: string, signal: AbortSignal): Promise<void> {
    const { catalog, registryImages } = this.#parts
    if (registryImages === undefined || !catalog.hasUnverifiedLayers()) return
    const layers = await registryImages.layersToCome(name, signal)
    if (layers !== undefined) await this.#checkRivalsOf(layers, signal)
  }

  async #checkRivalsOf(layers: readonly ImageLayer[], signal: AbortSignal): Promise<void> {
    const { catalog, log } = this.#parts
    for (const layer of layers) {
      for (const { id, blobCid } of catalog.layersByDiffId(layer.diffId)) {
        const isSame = (indexCid: string | undefined): boolean =>
          blobCid === layer.blobCid &&
          (indexCid === undefined || indexCid === layer.indexCid) &&
          this.#isDescribedAlike(blobCid)
        const building = this.#building.get(blobCid)
        if (building !== undefined && isSame(building.indexCid)) continue
        // Whether its image can be had is nothing to this one.
        await building?.record.catch(() => undefined)
        const rival = catalog.layer(id)
        if (rival?.state !== 'ready' || rival.verified || isSame(rival.indexCid)) continue
        log.warn(
          { diffId: layer.diffId, ours: layer.blobCid, theirs: rival.blobCid },
          'two images describe the same layer in different ways: checking what is here whole before the second is used',
        )
        await this.#fetchAndVerify(rival, signal)
        const checked = catalog.layer(id)
        if (checked?.state === 'ready' && !checked.verified) throw notChecked(rival)
      }
    }
  }

  /**
   * Diff IDs of encrypted layers are public, and containerd would give a snapshot that is here to any image that claims its chain ID,
   * without asking again. So an image that claims the diff ID of a layer that came encrypted must show that it has the same: by
   * a key that opens it, or by a blob of its own, which is fetched whole and checked.
   */
  async #checkTwins(layer: ImageLayer, signal: AbortSignal): Promise<void> {
    const secret = this.#parts.catalog
      .layersByDiffId(layer.diffId)
      .filter(({ state, mediaType }) => state === 'ready' && isEncrypted(mediaType))
    if (secret.length === 0) return
    const own = await unlessAborted(this.ready(layer), signal)
    const isTheSame = secret.some(({ id }) => id === own.id)
    if (isTheSame || own.verified) return
    await this.fetchWhole(own, signal)
    if (this.#parts.catalog.layer(own.id)?.verified !== true) throw notChecked(own)
  }

  /**
   * Fetches what is missing of a layer, in the background's place in the queue, and checks the whole. Rejects with BlockError,
   * or with LayerError: DATA_LOSS if it is not what its image promises.
   */
  async fetchWhole(
    record: LayerRecord,
    signal: AbortSignal,
    onProgress?: () => void,
  ): Promise<void> {
    await this.#fetchAndVerify(record, signal, onProgress)
    if (this.#parts.catalog.layer(record.id)?.state === 'corrupt') throw notAsPromised(record)
  }

  async #fetchAndVerify(
    record: LayerRecord,
    signal: AbortSignal,
    onProgress?: () => void,
  ): Promise<void> {
    const held = this.#held(record.id)
    const request = { priority: 'background', signal } as const
    const missing = held.file.missingUnits().values()
    const fetchNext = async (): Promise<void> => {
      for (const unit of missing) {
        await held.fill(unit, request)
        onProgress?.()
      }
    }
    try {
      // 8 at once keep a 100 Mbit/s link busy at 50 ms a round trip; the queue lets page faults pass.
      await Promise.all(Array.from({ length: 8 }, fetchNext))
    } catch (error) {
      const isDisproved = error instanceof LayerError && error.code === 'DATA_LOSS'
      const { indexCid, blobCid } = record
      const isInRegistry = this.#parts.catalog
        .imageLayers(blobCid)
        .some(({ inRegistry }) => inRegistry === true)
      // What a registry sent is checked by the index alone, and may be right when it is asked again.
      if (indexCid === undefined || isInRegistry || !isDisproved) throw error
      // Its blocks are what their CIDs say, so the side index is to blame: what it cannot decode now it never will.
      this.#spoil(record, { what: 'toc', sentence: error.message })
      return
    }
    if (held.file.isComplete) await this.#verifyOnce(record.id)
  }

  /** Whether a layer is being made mountable at this moment: its files are written, and whoever waits for it needs it. */
  isBuilding({ blobCid }: LayerRecord): boolean {
    return this.#building.has(blobCid)
  }

  /** Deletes a layer that no snapshot has. Rejects with LayerError FAILED_PRECONDITION while it is mounted, or being built. */
  async remove(record: LayerRecord): Promise<void> {
    const { blobCid } = record
    if (this.isBuilding(record)) {
      throw new LayerError(
        'FAILED_PRECONDITION',
        `layer ${record.blobDigest} is not removed: an image is being pulled that has it`,
      )
    }
    const removing =
      this.#removing.get(blobCid) ??
      this.#remove(record).finally(() => this.#removing.delete(blobCid))
    this.#removing.set(blobCid, removing)
    await removing
  }

  /** Whether a layer that was claimed a moment ago is still here, and stays if a snapshot names it in the same turn. */
  holds(layer: number): boolean {
    const record = this.#parts.catalog.layer(layer)
    return record !== undefined && !this.#removing.has(record.blobCid)
  }

  async #remove(record: LayerRecord): Promise<void> {
    const { catalog, store, builder, disk, mounts, server, shared } = this.#parts
    const held = store.get(fuseInode(record.id))
    mounts.release(record.id)
    await mounts.removeDerivedFrom(record.id)
    server?.remove(fuseInode(record.id))
    try {
      // The row goes last: files without one would be found and deleted, a row without files would be a layer.
      await store.remove(fuseInode(record.id))
    } catch (error) {
      if (held !== undefined) server?.add(held)
      throw error
    }
    shared.forget(record.id)
    builder.forget(record.id)
    disk.forget(record.id)
    catalog.removeLayer(record.id)
    await catalog.wal.flushed()
  }

  /**
   * Reads what is here of a layer from the disk, checks it, and heals what the disk has damaged. Rejects with LayerError DATA_LOSS if
   * that is not possible, with BlockError if it takes bytes that cannot be had, and with what the disk says.
   */
  async checkOnDisk(record: LayerRecord, signal: AbortSignal): Promise<CheckedLayer> {
    const { disk, store } = this.#parts
    const { id } = record
    // There is nothing to heal of what was lost: it is built again when a container needs it.
    if (store.get(fuseInode(id)) === undefined) {
      return { isWhole: false, healedUnits: 0, healedTables: false }
    }
    if (record.state === 'corrupt') throw notAsPromised(record)
    await disk.doubt(record)
    const tables = await disk.tables(record, signal)
    await unlessAborted(this.#mountable(id), signal)
    const healedUnits = await disk.units(record, signal)
    const isWhole = await this.#checkWhole(id, signal)
    return { isWhole, healedUnits, healedTables: tables !== 'sound' }
  }

  /** Checks a layer of which every unit was compared with what was written. Resolves to false if bytes of it are missing. */
  async #checkWhole(layer: number, signal: AbortSignal): Promise<boolean> {
    if (!this.#held(layer).file.isComplete) return false
    const { catalog, disk } = this.#parts
    const before = catalog.layer(layer)
    if (before?.verified === true) {
      await disk.whole(before, signal)
      return true
    }
    await unlessAborted(this.#verifyOnce(layer), signal)
    const checked = catalog.layer(layer)
    if (checked?.state === 'corrupt') throw notAsPromised(checked)
    return checked?.verified ?? false
  }

  /** Ends what is being built and checked. Mounts stay. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    const building = [...this.#building.values()].map(({ record }) => record)
    await Promise.allSettled([...building, ...this.#verifying.values()])
  }

  async #build(layer: ImageLayer): Promise<LayerRecord> {
    const { catalog, builder, disk, server, log } = this.#parts
    const started = performance.now()
    const isNew = catalog.layerByBlob(layer.blobCid) === undefined
    const id = catalog.beginLayer(layer)
    try {
      // What was written by this id before is not taken for whole from here on. New ones have nothing there.
      if (!isNew) await catalog.wal.flushed()
      const { held, ...found } = await builder.build(id, layer, this.#closing.signal)
      catalog.finishLayer(id, found)
      disk.noteWritten(id)
      server?.add(held)
      log.info(
        {
          layer: layer.blobDigest,
          cid: layer.blobCid,
          ms: Math.round(performance.now() - started),
          notLazyBecause: found.notLazyBecause,
        },
        `layer ${layer.blobDigest} can be mounted`,
      )
    } catch (error) {
      if (isNew) catalog.removeLayer(id)
      else catalog.markLost(id)
      throw error
    }
    const record = catalog.layer(id)
    if (record === undefined)
      throw new LayerError('ABORTED', `layer ${layer.blobDigest} was removed`)
    if (!record.verified && this.#held(id).file.isComplete) void this.#verify(record)
    return record
  }

  async #verifyOnce(layer: number): Promise<void> {
    const record = this.#parts.catalog.layer(layer)
    // While it is being built, whoever builds it does this.
    if (record?.state === 'ready' && !record.verified) await this.#verify(record)
  }

  #verify(record: LayerRecord): Promise<void> {
    const running = this.#verifying.get(record.id)
    if (running !== undefined) return running
    const verifying = this.#check(record).finally(() => this.#verifying.delete(record.id))
    this.#verifying.set(record.id, verifying)
    return verifying
  }

  async #check(record: LayerRecord): Promise<void> {
    const { catalog, log } = this.#parts
    try {
      const verdict = await this.#lastingVerdictOn(record)
      if (verdict.kind === 'corrupt') return this.#spoil(record, verdict)
      catalog.markVerified(record.id)
      log.debug(
        { layer: record.blobDigest },
        'all of a layer is here and is what its image promised',
      )
      await this.#parts.mounts.settle(record.id)
    } catch (error) {
      if (this.#closing.signal.aborted) return
      const reason = error instanceof Error ? error.message : String(error)
      log.warn(
        { layer: record.blobDigest, reason },
        `layer ${record.blobDigest} could not be checked; it is checked again when its last byte arrives, or after a restart: ${reason}`,
      )
    }
  }

  /**
   * Whom a layer that is not what its image promises is to be blamed on: as long as the disk has damaged something of it, nobody but
   * the disk. Rejects with LayerError DATA_LOSS if that does not end, and if what was damaged cannot be had.
   */
  async #lastingVerdictOn(record: LayerRecord): Promise<Verdict> {
    const { disk } = this.#parts
    const { signal } = this.#closing
    for (let healings = 0; healings <= HEALINGS_MAX; healings++) {
      disk.doubtTables(record)
      await this.#mountable(record.id)
      const verdict = await this.#verdictOn(record)
      if (verdict.kind === 'intact' || (await disk.units(record, signal)) === 0) return verdict
    }
    throw doesNotKeep(record)
  }

  async #verdictOn(record: LayerRecord): Promise<Verdict> {
    const { builder } = this.#parts
    const { signal } = this.#closing
    const promised = { diffId: record.diffId, toc: await builder.toc(record.id) }
    const verdict = await verifyLayer(this.#held(record.id), promised, signal)
    if (verdict.kind === 'corrupt') return verdict
    const sentence = await builder.checkCiphertext(record, signal)
    return sentence === undefined ? verdict : { kind: 'corrupt', what: 'layer', sentence }
  }

  /** Whether all images on this node that have the layer look for its table of contents in the same place. */
  #isDescribedAlike(blobCid: string): boolean {
    const named = this.#parts.catalog.imageLayers(blobCid)
    return new Set(named.map(({ annotations }) => tablesNamed(annotations))).size <= 1
  }

  /** Ends all reading of a layer that was found to be a lie. */
  #spoil(
    record: LayerRecord,
    { what, sentence }: { readonly what: 'layer' | 'toc'; readonly sentence: string },
  ): void {
    const { catalog, mounts, server, log, onVerificationFailure, onSpoiled } = this.#parts
    catalog.markCorrupt(record.id)
    mounts.release(record.id)
    server?.remove(fuseInode(record.id))
    onVerificationFailure(what)
    log.error(
      { layer: record.blobDigest, cid: record.blobCid, index: record.indexCid },
      `layer ${record.blobDigest} is not what its image promised, every read of it now fails: ${sentence}`,
    )
    onSpoiled(record)
  }

  /** A layer whose tables are what was written; one of which the disk has lost them is built again. */
  #mountable(layer: number): Promise<LayerRecord> {
    const looking =
      this.#sound.get(layer) ?? this.#withTables(layer).finally(() => this.#sound.delete(layer))
    this.#sound.set(layer, looking)
    return looking
  }

  async #withTables(layer: number): Promise<LayerRecord> {
    const { catalog, disk, mounts, server, shared, store, log } = this.#parts
    const record = await this.#usable(layer)
    if ((await disk.tables(record, this.#closing.signal)) !== 'lost') return record
    log.error(
      { layer: record.blobDigest },
      `the disk has damaged the table of contents of layer ${record.blobDigest}: it is built again`,
    )
    server?.remove(fuseInode(layer))
    mounts.release(layer)
    await mounts.removeDerivedFrom(layer)
    shared.forget(layer)
    await store.letGo(fuseInode(layer))
    catalog.markLost(layer)
    return this.#usable(layer)
  }

  /** A snapshot names this layer: if its files were lost, an image that we remember says where to get them again. */
  async #usable(layer: number): Promise<LayerRecord> {
    const record = this.#parts.catalog.layer(layer)
    if (record?.state === 'ready') return record
    const named =
      record &&
      this.#parts.catalog
        .imageLayers(record.blobCid)
        .find(
          ({ diffId, mediaType }) =>
            diffId === record.diffId && isEncrypted(mediaType) === isEncrypted(record.mediaType),
        )
    if (named === undefined) {
      throw new ImageError(
        'NOT_FOUND',
        `layer ${record?.blobDigest ?? layer} is no longer on this node, and no image that has it is known: remove the image and pull it again`,
        { layer },
      )
    }
    return this.ready(named)
  }

  #held(layer: number): LazyLayer {
    const held = this.#parts.store.get(fuseInode(layer))
    if (held === undefined) throw new LayerError('NOT_FOUND', `layer ${layer} is not on this node`)
    return held
  }
}

function notAsPromised({
  blobDigest,
  blobCid,
}: Pick<LayerRecord, 'blobDigest' | 'blobCid'>): LayerError {
  return new LayerError(
    'DATA_LOSS',
    `layer ${blobDigest} at ${blobCid} is not what its image promises; run 'ipdr cache rm ${blobDigest}' to try it again`,
    { digest: blobDigest, cid: blobCid },
  )
}

function notChecked({ blobDigest, blobCid }: LayerRecord): LayerError {
  return new LayerError(
    'UNAVAILABLE',
    `layer ${blobDigest} at ${blobCid} had to be checked whole first, and could not be: the agent's log says why`,
    { digest: blobDigest, cid: blobCid },
  )
}

function isOnIpfs({ reference }: RememberedImage): boolean {
  return reference.startsWith(`${IMAGE_HOST}/`)
}

/** The layers of which the uppermost has this chain ID. */
function upTo<T extends { readonly layerChainId: string }>(
  layers: readonly T[],
  layerChainId: string,
): readonly T[] {
  return layers.slice(0, layers.findIndex((layer) => layer.layerChainId === layerChainId) + 1)
}

/** By the first of the images whose blob of the layer is still there. Rejects as the last of them. */
async function unpackByAny(
  images: readonly RememberedImage[],
  { layer, mounts }: { readonly layer: RememberedLayer; readonly mounts: readonly Mount[] },
  signal: AbortSignal,
): Promise<void> {
  let failure: unknown
  for (const image of images) {
    const its = image.layers.find(({ layerChainId }) => layerChainId === layer.layerChainId)
    if (its === undefined) continue
    try {
      await image.unpack(its, mounts, signal)
      return
    } catch (error) {
      failure = error
    }
  }
  throw failure
}
