import { mkdir, readFile, rm } from 'node:fs/promises'
import { CID } from 'multiformats/cid'
import type { BlobStore } from '../blobs/blob-store.ts'
import type { LayerBlob } from '../blobs/layer-blob.ts'
import type { LayerMap } from '../blobs/layer-map.ts'
import type { LazyLayer } from '../blobs/lazy-layer.ts'
import { blobCid, RegistryBlob, type RegistryBlobName } from '../blobs/registry-blob.ts'
import type { BlockSource } from '../block-source.ts'
import type { ByteRange } from '../byte-range.ts'
import type { ClusterPeers } from '../cluster-peers.ts'
import { readSideIndex } from '../dag/side-indexes.ts'
import { UnixfsFile } from '../dag/unixfs-file.ts'
import { DecryptedBlob } from '../encryption/decrypted-blob.ts'
import type { LayerKey } from '../encryption/layer-cipher.ts'
import { isEncrypted } from '../encryption/layer-encryption.ts'
import { CodedError, ImageError, LayerError, RegistryError } from '../errors.ts'
import type { ImageRegistries, RepositoryScope } from '../image-registries.ts'
import type { Log } from '../log.ts'
import type { Digest } from '../oci/digest.ts'
import { ChunkLayerMap } from '../toc/chunked/chunk-layer-map.ts'
import { fetchChunkedTables } from '../toc/chunked/fetch-chunked-tables.ts'
import { decodeZstdStream } from '../toc/decode-zstd-stream.ts'
import { fetchEstargzToc } from '../toc/estargz/fetch-estargz-toc.ts'
import { GzipIndexer } from '../toc/gzip/gzip-indexer.ts'
import { decodeToc, encodeToc, LAYER_INDEX_ANNOTATION } from '../toc/layer-index.ts'
import type { LayerToc } from '../toc/layer-toc.ts'
import { fetchLayerIndex } from '../toc/read-layer-toc.ts'
import { SNIFF_BYTES, sniffCompression } from '../toc/sniff-compression.ts'
import { NO_TABLES, tablesNamed, vouchedTable } from '../toc/table-annotations.ts'
import { TarLayerMap } from '../toc/tar-layer-map.ts'
import { walkTar } from '../toc/walk-tar.ts'
import { readBlobInRegistry } from './blob-in-registry.ts'
import type { Catalog, FoundLayer, ImageLayer, LayerFormat, LayerRecord } from './catalog.ts'
import { CiphertextFile } from './ciphertext-file.ts'
import { writeDurably } from './durable-file.ts'
import { readSums, sumOf, sumOfFile, writeSums } from './file-sums.ts'
import { type BlobPlaces, type KeptBlob, keptEncryptedBlob, readKeptBlob } from './kept-blob.ts'
import type { KeptEncryption, LayerKeys } from './layer-keys.ts'
import { fuseInode, type LayerPlaces } from './layer-places.ts'
import { LayerReading, layerBytesBound } from './layer-reading.ts'
import { LeafSource } from './leaf-source.ts'
import { metadataImage } from './metadata-image.ts'
import { readLayerMap } from './read-layer-map.ts'
import type { SharedLeaves } from './shared-leaves.ts'
import { StreamedLayerMap } from './streamed-layer-map.ts'
import type { TableThread } from './table-thread.ts'
import type { IndexAnswer, MadeImage } from './table-work.ts'
import { verifyCiphertext } from './verify-ciphertext.ts'

/** Longest name of a device in an EROFS image: `struct erofs_deviceslot` has 64 bytes for it. */
const DEVICE_TAG_CHARS = 64

/** A layer that can be mounted. */
export type BuiltLayer = FoundLayer & { readonly held: LazyLayer }

type Parts = {
  /** Where blobs in registries are to be had. */
  readonly catalog: Pick<Catalog, 'scopesOf'>
  readonly registries: ImageRegistries | undefined
  readonly tables: TableThread
  readonly store: BlobStore
  readonly blocks: BlockSource
  readonly shared: SharedLeaves
  readonly keys: LayerKeys
  readonly peers: ClusterPeers | undefined
  readonly log: Log
}

/** What became of the files of a layer that a disk may have damaged; of one that is lost, nothing here says what was in it. */
export type FilesState = 'sound' | 'remade' | 'lost'

/** An index of a gzip layer that is not in its blob, and who says so. */
type OutsideIndex = {
  /** For people: the index … cannot be used. */
  readonly whose: string
  /** CIDv1, where an image's publisher vouches for it. */
  readonly indexCid: string | undefined
  readonly read: () => Promise<Uint8Array>
}

type Found = {
  readonly format: LayerFormat
  /** As `encodeToc` writes it. */
  readonly toc: Uint8Array
  readonly held: LazyLayer
  readonly notLazyBecause: string | undefined
  /** Its diff ID was checked, since all of it was read. */
  readonly verified: boolean
  /** The side index that all of this comes from. */
  readonly indexCid: string | undefined
  /** The EROFS image, if it was made on the way. */
  readonly image: MadeImage | undefined
}

/** Makes layers mountable: finds or makes the table of contents, the map and the EROFS metadata image, durably. */
export class LayerBuilder {
  readonly #places: LayerPlaces
  readonly #layerBytesMax: number
  readonly #parts: Parts
  /** How the encrypted layers that were built or reopened are encrypted, by id. */
  readonly #encryptions = new Map<number, KeptEncryption>()

  constructor(options: { places: LayerPlaces; layerBytesMax: number }, parts: Parts) {
    this.#places = options.places
    this.#layerBytesMax = options.layerBytesMax
    this.#parts = parts
  }

  /**
   * Makes layer `id` mountable from its blob. On rejection nothing of it is left. Rejects with BlockError (bytes cannot be had),
   * ImageError (the blob is not the one that the manifest names) or LayerError (malformed, hostile, or too large).
   */
  async build(id: number, layer: ImageLayer, signal: AbortSignal): Promise<BuiltLayer> {
    this.#parts.tables.warm()
    try {
      const blob = await this.#openBlob(id, layer, signal)
      if (blob.size !== layer.blobSize) {
        throw new ImageError(
          'DATA_LOSS',
          `layer ${layer.blobDigest} has ${blob.size} bytes at ${layer.blobCid}, its manifest says ${layer.blobSize}`,
          { digest: layer.blobDigest, cid: layer.blobCid },
        )
      }
      for await (const index of this.#outsideIndexes(layer, blob, signal)) {
        const byIndex = await this.#buildByIndex(id, layer, blob, index, signal)
        if (byIndex !== undefined) return byIndex
      }
      return await this.#finish(id, blob, await this.#find(id, layer, blob, signal), signal)
    } catch (error) {
      await this.#discard(id)
      throw error
    }
  }

  /** Holds a layer that was built before, from what is on disk alone. Rejects with LayerError if that is damaged. */
  async reopen(record: LayerRecord): Promise<LazyLayer> {
    const bytes = await readFile(this.#places.mapPath(record.id))
    const promised = await readSums(this.#places.sumsPath(record.id))
    // Another map may be as well-formed, and what it makes of the blob would be called a lie of its publisher.
    if (promised?.map !== undefined && promised.map !== sumOf(bytes)) {
      throw new LayerError('DATA_LOSS', 'its map has another checksum than when it was written')
    }
    const map = readLayerMap(bytes)
    if (isEncrypted(record.mediaType)) await this.#reopenBlob(record.id)
    const held = await this.#hold(record.id, map)
    if (!(map instanceof StreamedLayerMap) || held.file.isComplete) return held
    await this.#parts.store.letGo(held.inode)
    throw new LayerError(
      'DATA_LOSS',
      'parts of it are gone, and a zstd layer without an index cannot be read in parts',
    )
  }

  /** Forgets a layer that was removed. */
  forget(id: number): void {
    this.#encryptions.delete(id)
  }

  /**
   * Checks that an image may have a layer that was built, perhaps for another image: of an encrypted one, a key of this node must
   * open it by this image's words too. Rejects with LayerError PERMISSION_DENIED, and as `LayerKeys.check`.
   */
  async checkAccess(record: LayerRecord, layer: ImageLayer): Promise<void> {
    const built = this.#encryptions.get(record.id)
    const isLocked = isEncrypted(layer.mediaType)
    if (built !== undefined && isLocked) return this.#parts.keys.check(layer, built)
    if (built === undefined && !isLocked) return
    throw new LayerError(
      'PERMISSION_DENIED',
      `layer ${layer.blobDigest} at ${layer.blobCid} is ${built === undefined ? 'not encrypted' : 'encrypted'}, the image says it is ${layer.mediaType}`,
      { digest: layer.blobDigest, cid: layer.blobCid },
    )
  }

  /** Checks that pods of a Kubernetes namespace may see an encrypted layer. Rejects as `LayerKeys.authorize`. */
  async authorize(record: LayerRecord, namespace: string): Promise<void> {
    const { id, blobCid, blobDigest } = record
    const built = this.#encryptions.get(id)
    try {
      if (built !== undefined) return await this.#parts.keys.authorize(blobCid, built, namespace)
    } catch (error) {
      if (!(error instanceof LayerError) || error.code !== 'PERMISSION_DENIED') throw error
    }
    throw new LayerError(
      'PERMISSION_DENIED',
      `pods of namespace ${namespace} may not see layer ${blobDigest}: it is encrypted, and no key that they may use opens it; put one into decryption.keysDir/${namespace}`,
      { digest: blobDigest, namespace },
    )
  }

  /**
   * Checks the ciphertext of a layer that is complete. The sentence of what is wrong; undefined if nothing is, or if it is not
   * encrypted. Rejects as `LayerKeys.open` and with BlockError: then nothing is known.
   */
  async checkCiphertext(record: LayerRecord, signal: AbortSignal): Promise<string | undefined> {
    const { id, blobCid, blobDigest } = record
    const encryption = this.#encryptions.get(id)
    if (encryption === undefined) return undefined
    const opened = await this.#parts.keys.reopen(blobCid, encryption)
    const stored = await readFile(this.#places.leavesPath(id))
    const { blob } = readKeptBlob(stored, this.#blobPlaces)
    const kept = this.#ciphertext(id)
    const sentence = await verifyCiphertext(blob, { kept, opened, blobDigest }, signal)
    if (sentence === undefined) await kept.remove()
    return sentence
  }

  /** The side index of a gzip layer that was built, for others. Rejects with LayerError if its files are damaged. */
  async sideIndex(record: LayerRecord): Promise<Uint8Array> {
    const { id, blobSize } = record
    const blobDigest = record.blobDigest as Digest
    const diffId = record.diffId as Digest
    const map = await readFile(this.#places.mapPath(id))
    const toc = await readFile(this.#places.tocPath(id))
    const layer = { blobDigest, blobSize, diffId }
    return (await this.#parts.tables.export({ kind: 'export', layer, map, toc })).stored
  }

  /** The table of contents of a layer that was built. */
  async toc(id: number): Promise<LayerToc> {
    return decodeToc(await readFile(this.#places.tocPath(id)))
  }

  /**
   * Finds out whether a disk has damaged the table of contents or the metadata image, which no CID vouches for, and makes them anew
   * where they can be: the image from the table, the table from a tar that is here whole. Rejects with what the disk says.
   */
  async checkFiles(record: LayerRecord, held: LazyLayer, signal: AbortSignal): Promise<FilesState> {
    const { id, blobDigest } = record
    const promised = await readSums(this.#places.sumsPath(id))
    const toc = await sumOfFile(this.#places.tocPath(id))
    const metadata = await sumOfFile(this.#places.metadataPath(id))
    if (promised === undefined && toc !== undefined && metadata !== undefined) {
      // On a full disk it is the next start that takes them down.
      await writeSums(this.#places.sumsPath(id), { toc, metadata }).catch((error: unknown) => {
        const sentence = `layer ${blobDigest} has no checksums yet: ${String(error)}`
        this.#parts.log.warn({ layer: blobDigest, reason: String(error) }, sentence)
      })
      return 'sound'
    }
    const isTocSound = toc !== undefined && toc === promised?.toc
    if (isTocSound && metadata !== undefined && metadata === promised?.metadata) return 'sound'
    const table = isTocSound
      ? await readFile(this.#places.tocPath(id))
      : await tocOfTar(held, signal)
    if (table === undefined) return 'lost'
    await this.#writeTables(id, `layer ${id}`, { toc: table, held, image: undefined }, signal)
    return 'remade'
  }

  /**
   * Indexes of a layer that are not in its blob, the best first: the one beside its image, for which its publisher vouches, and what a
   * peer found out that has checked the layer whole.
   */
  async *#outsideIndexes(
    layer: ImageLayer,
    blob: LayerBlob,
    signal: AbortSignal,
  ): AsyncGenerator<OutsideIndex, void> {
    const { blocks, peers } = this.#parts
    const { indexCid, blobCid, annotations } = layer
    // Of an encrypted layer it would say in plain text what that is to hide, and nobody with the key has vouched for it.
    if (blob instanceof DecryptedBlob) return
    // One inside the blob is vouched for by the manifest itself.
    if (LAYER_INDEX_ANNOTATION in annotations) return
    if (indexCid !== undefined) {
      const request = { priority: 'foreground', signal } as const
      yield {
        whose: 'beside its image',
        indexCid,
        read: () => readSideIndex(CID.parse(indexCid), blob.size, blocks, request),
      }
    }
    // Those of other writers are read where they lie: no peer need be asked.
    if (peers === undefined || tablesNamed(annotations) !== NO_TABLES) return
    const found = await peers.sideIndex(blobCid, signal)
    if (found === undefined) return
    yield {
      whose: `from ${found.peer}`,
      indexCid: undefined,
      read: () => Promise.resolve(found.bytes),
    }
  }

  /**
   * Builds a gzip layer by an index, reading of the blob only what the metadata image needs.
   * Undefined, with a sentence in the log, if it cannot be used: no byte of the layer was served yet.
   */
  async #buildByIndex(
    id: number,
    layer: ImageLayer,
    blob: LayerBlob,
    { whose, indexCid, read }: OutsideIndex,
    signal: AbortSignal,
  ): Promise<BuiltLayer | undefined> {
    const { tables, log } = this.#parts
    const { blobDigest } = layer
    try {
      const answer = await tables.index({
        kind: 'sideIndex',
        stored: await read(),
        layer,
        tag: deviceTag(blob),
      })
      const map = readLayerMap(answer.map)
      await this.#writeMap(id, blob, map)
      const held = await this.#hold(id, map)
      return await this.#finish(
        id,
        blob,
        {
          format: 'tar+gzip',
          toc: answer.toc,
          held,
          notLazyBecause: undefined,
          verified: false,
          indexCid,
          image: answer.image,
        },
        signal,
      )
    } catch (error) {
      if (signal.aborted || !(error instanceof CodedError)) throw error
      await this.#discard(id)
      log.warn(
        { layer: blobDigest, index: indexCid, reason: error.message },
        `layer ${blobDigest}: the index ${whose} cannot be used, so the layer is read without it: ${error.message}`,
      )
      return undefined
    }
  }

  /** Writes the rest of what a mount needs. */
  async #finish(
    id: number,
    blob: LayerBlob,
    found: Found,
    signal: AbortSignal,
  ): Promise<BuiltLayer> {
    const image = await this.#writeFiles(id, blob, found, signal)
    return { ...found, ...image, layerSize: found.held.file.map.layerSize }
  }

  async #discard(id: number): Promise<void> {
    this.#parts.shared.forget(id)
    this.#encryptions.delete(id)
    await this.#parts.store.remove(fuseInode(id))
    await rm(this.#places.layerDir(id), { recursive: true, force: true })
  }

  async #find(id: number, layer: ImageLayer, blob: LayerBlob, signal: AbortSignal): Promise<Found> {
    const request = { priority: 'foreground', signal } as const
    const read = (range: ByteRange): Promise<Uint8Array> => blob.readRange(range, request)
    if (blob instanceof RegistryBlob) return this.#findByTables(id, layer, blob, signal)
    const index = await fetchLayerIndex(layer.annotations, read, blob.size, signal)
    if (index !== undefined) {
      const of = { blobSize: blob.size, tag: deviceTag(blob) }
      const request = { kind: 'index', ...index, ...of } as const
      return this.#holdIndexed(id, blob, 'tar+zstd', await this.#parts.tables.index(request))
    }
    const start = await read({ start: 0, end: Math.min(SNIFF_BYTES, blob.size) })
    const compression = sniffCompression(start)
    if (compression === 'tar') return this.#findInTar(id, blob, signal)
    if (compression !== 'unknown') {
      const foreign = await this.#foreignTable(layer, blob, compression, read, signal)
      if (foreign?.kind === 'found') {
        return this.#holdIndexed(id, blob, foreign.format, foreign.answer)
      }
      return this.#readWhole(id, layer, blob, { compression, ...foreign }, signal)
    }
    throw new LayerError(
      'INVALID_ARGUMENT',
      `layer ${layer.blobDigest} (${layer.mediaType}) is neither tar nor gzip nor zstd, it starts with ${hexOf(start)}: an encrypted or damaged layer`,
      { digest: layer.blobDigest },
    )
  }

  /**
   * A layer in a registry, by tables for which its manifest vouches and which vouch for every byte of it: nothing else does.
   * Rejects with LayerError if it has none; whoever pulls it downloads it whole then.
   */
  async #findByTables(
    id: number,
    layer: ImageLayer,
    blob: RegistryBlob,
    signal: AbortSignal,
  ): Promise<Found> {
    const { tables } = this.#parts
    const request = { priority: 'foreground', signal } as const
    const read = (range: ByteRange): Promise<Uint8Array> => blob.readRange(range, request)
    const of = { size: blob.size, leafStarts: blob.leafStarts, unverified: true }
    switch (vouchedTable(layer.annotations)) {
      case 'zstd:chunked': {
        const found = await fetchChunkedTables(layer.annotations, read, blob.size, signal)
        if (found === undefined) break
        const answer = await tables.index({
          kind: 'chunked',
          tables: found,
          blob: of,
          tag: deviceTag(blob),
        })
        return this.#holdIndexed(id, blob, 'tar+zstd:chunked', answer)
      }
      case 'eStargz': {
        const table = await fetchEstargzToc(layer.annotations, read, blob.size, signal)
        if (table === undefined) break
        const answer = await tables.index({
          kind: 'estargz',
          table,
          blob: of,
          tag: deviceTag(blob),
        })
        return this.#holdIndexed(id, blob, 'tar+estargz', answer)
      }
      default:
    }
    throw new LayerError(
      'FAILED_PRECONDITION',
      `layer ${layer.blobDigest} has no table of contents where its manifest says that it has one`,
      { digest: layer.blobDigest },
    )
  }

  /** The layer, by what its own tables say. */
  async #holdIndexed(
    id: number,
    blob: LayerBlob,
    format: LayerFormat,
    { toc, map: mapBytes, image }: IndexAnswer,
  ): Promise<Found> {
    const map = readLayerMap(mapBytes)
    await this.#writeMap(id, blob, map)
    await this.#keepCiphertext(id, blob)
    const held = await this.#hold(id, map)
    return {
      format,
      toc,
      held,
      notLazyBecause: undefined,
      verified: false,
      indexCid: undefined,
      image,
    }
  }

  /**
   * What another tool's table gives, if the layer has one. It is that tool's promise, and the layer is as good without: where it
   * cannot be used the layer is read whole, and checked, and the reason is remembered.
   */
  async #foreignTable(
    layer: ImageLayer,
    blob: LayerBlob,
    compression: 'gzip' | 'zstd',
    read: (range: ByteRange) => Promise<Uint8Array>,
    signal: AbortSignal,
  ): Promise<
    | { readonly kind: 'found'; readonly format: LayerFormat; readonly answer: IndexAnswer }
    | { readonly kind: 'unusable'; readonly because: string }
    | undefined
  > {
    const { tables, log } = this.#parts
    const of = { size: blob.size, leafStarts: blob.leafStarts }
    try {
      if (compression === 'gzip') {
        const table = await fetchEstargzToc(layer.annotations, read, blob.size, signal)
        if (table === undefined) return undefined
        const answer = await tables.index({
          kind: 'estargz',
          table,
          blob: of,
          tag: deviceTag(blob),
        })
        return { kind: 'found', format: 'tar+estargz', answer }
      }
      const found = await fetchChunkedTables(layer.annotations, read, blob.size, signal)
      if (found === undefined) return undefined
      const answer = await tables.index({
        kind: 'chunked',
        tables: found,
        blob: of,
        tag: deviceTag(blob),
      })
      return { kind: 'found', format: 'tar+zstd:chunked', answer }
    } catch (error) {
      if (!(error instanceof LayerError)) throw error
      log.warn(
        { layer: layer.blobDigest, reason: error.message },
        `the tables of layer ${layer.blobDigest} cannot be used: ${error.message}`,
      )
      return { kind: 'unusable', because: error.message }
    }
  }

  /** Reads only the headers of a plain tar; the leaves that hold them are kept, contents stay where they are. */
  async #findInTar(id: number, blob: LayerBlob, signal: AbortSignal): Promise<Found> {
    const map = new TarLayerMap(blob.leafStarts.subarray(1))
    await this.#writeMap(id, blob, map)
    await this.#keepCiphertext(id, blob)
    const held = await this.#hold(id, map)
    const toc = await walkTar(
      (offset, length) =>
        held.read({ start: offset, end: offset + length }, { priority: 'foreground', signal }),
      blob.size,
      signal,
    )
    return {
      format: 'tar',
      toc: encodeToc(toc),
      held,
      notLazyBecause: undefined,
      verified: false,
      indexCid: undefined,
      image: undefined,
    }
  }

  /** Reads a layer without a table of contents from front to back, keeps all of it, and checks it on the way. */
  async #readWhole(
    id: number,
    layer: ImageLayer,
    blob: LayerBlob,
    { compression, because }: { compression: 'gzip' | 'zstd'; because?: string },
    signal: AbortSignal,
  ): Promise<Found> {
    const { store, log } = this.#parts
    const outputBytesMax = Math.min(this.#layerBytesMax, layerBytesBound(blob.size))
    const reading = new LayerReading(layer)
    const content = await this.#wholeBlob(layer, blob, reading, signal)
    const gzip = new GzipIndexer({ outputBytesMax })
    const layerBytes =
      compression === 'gzip'
        ? gunzip(content, gzip)
        : decodeZstdStream(content, { outputBytesMax, signal })
    log.info(
      { layer: layer.blobDigest, bytes: blob.size },
      `layer ${layer.blobDigest} has no usable table of contents: reading all ${blob.size} bytes of it once`,
    )
    await using file = await store.write(String(id))
    for await (const bytes of layerBytes) {
      reading.ofLayer(bytes)
      await file.write(bytes)
    }
    // Before the tar is looked at: one that is cut off may be so because the gzip is.
    const seekable = compression === 'gzip' ? gzip.finish() : undefined
    const toc = reading.finish()
    const map = seekable ?? new StreamedLayerMap({ layerSize: toc.layerSize, blobSize: blob.size })
    await file.seal(map)
    await this.#writeMap(id, blob, map)
    const held = await this.#hold(id, map)
    return {
      format: `tar+${compression}`,
      toc: encodeToc(toc),
      held,
      notLazyBecause: `${because ?? `it is ${compression} without a table of contents`}, so it was read whole once; ${compression === 'gzip' ? 'run ipdr index on its image, or ' : ''}push it again with ipdr push`,
      verified: true,
      indexCid: undefined,
      image: undefined,
    }
  }

  /** What leads to the blob of a layer that was built, as `openPublished` reads it. Rejects if the layer is gone. */
  async publishedBlob(record: LayerRecord): Promise<Uint8Array> {
    const { blob } = await this.#keptBlob(record.id)
    return blob.toBytes()
  }

  /** The blob that `publishedBlob` or `keptBlobInRegistry` told of, encrypted if it was published so. Throws BlockError DATA_LOSS. */
  openPublished(bytes: Uint8Array): LayerBlob {
    const elsewhere = readBlobInRegistry(bytes)
    if (elsewhere === undefined) return readKeptBlob(bytes, this.#blobPlaces).blob
    return this.#inRegistry(elsewhere, [{ ...elsewhere, namespaces: [] }])
  }

  async #hold(id: number, map: LayerMap): Promise<LazyLayer> {
    const { store, shared } = this.#parts
    const leaves = new LeafSource(map, () => this.#reopenBlob(id), store.memory)
    const source = shared.share(id, leaves)
    return store.add({ inode: fuseInode(id), name: String(id), map, source })
  }

  /** All of a blob in order, as it was before it was encrypted, checked on the way as it was published. */
  async #wholeBlob(
    layer: ImageLayer,
    blob: LayerBlob,
    reading: LayerReading,
    signal: AbortSignal,
  ): Promise<AsyncIterable<Uint8Array>> {
    const range = { start: 0, end: blob.size }
    const request = { priority: 'foreground', signal } as const
    if (!(blob instanceof DecryptedBlob)) return reading.ofBlob(blob.stream(range, request))
    const { hmac } = await this.#parts.keys.open(layer)
    const published = reading.ofBlob(blob.encrypted.stream(range, request))
    return blob.decrypt(authenticated(published, await blob.key(), hmac, layer), 0)
  }

  async #openBlob(id: number, layer: ImageLayer, signal: AbortSignal): Promise<LayerBlob> {
    if (layer.inRegistry === true) {
      return this.#inRegistry({ digest: layer.blobDigest, size: layer.blobSize })
    }
    const open = (): Promise<LayerBlob> =>
      UnixfsFile.open(CID.parse(layer.blobCid), this.#parts.blocks, {
        priority: 'foreground',
        signal,
      })
    if (!isEncrypted(layer.mediaType)) return open()
    // First: without the key nothing has to be fetched.
    const { annotations, key } = await this.#parts.keys.open(layer)
    const { blobDigest } = layer
    return this.#decrypted(id, await open(), { blobDigest, annotations, keyMark: key.mark })
  }

  /** The blob of a layer that was built, from this node's disk alone. */
  async #reopenBlob(id: number): Promise<LayerBlob> {
    const { blob, encryption } = await this.#keptBlob(id)
    return encryption === undefined ? blob : this.#decrypted(id, blob, encryption)
  }

  async #keptBlob(id: number): Promise<KeptBlob> {
    return readKeptBlob(await readFile(this.#places.leavesPath(id)), this.#blobPlaces)
  }

  get #blobPlaces(): BlobPlaces {
    return { blocks: this.#parts.blocks, inRegistry: (name) => this.#inRegistry(name) }
  }

  /** A blob in the repositories from which images with it were pulled, and in `more`. */
  #inRegistry(name: RegistryBlobName, more: readonly RepositoryScope[] = []): RegistryBlob {
    const cid = blobCid(name.digest).toString()
    return new RegistryBlob(name, async (range, request) => {
      const { catalog, registries } = this.#parts
      // Asked each time: another image with the same layer, or another namespace, may have come since.
      const scopes = [...catalog.scopesOf(cid), ...more]
      if (registries !== undefined && scopes.length > 0) {
        return registries.readBlob(scopes, name, range, request)
      }
      throw new RegistryError(
        'NOT_FOUND',
        `no image on this node says in which registry layer ${name.digest} is: pull its image again`,
        { digest: name.digest },
      )
    })
  }

  #decrypted(id: number, encrypted: LayerBlob, encryption: KeptEncryption): DecryptedBlob {
    this.#encryptions.set(id, encryption)
    const { keys } = this.#parts
    const ciphertext = this.#ciphertext(id)
    return new DecryptedBlob(encrypted, {
      key: async () => (await keys.reopen(encrypted.cid.toV1().toString(), encryption)).key,
      onCiphertext: (offset, bytes) => ciphertext.keep(offset, bytes),
      stored: keptEncryptedBlob(encrypted, encryption),
    })
  }

  #ciphertext(id: number): CiphertextFile {
    return new CiphertextFile(this.#places.ciphertextPath(id))
  }

  /** For the HMAC, of a layer that is not read in order. */
  async #keepCiphertext(id: number, blob: LayerBlob): Promise<void> {
    if (blob instanceof DecryptedBlob) await this.#ciphertext(id).create()
  }

  async #writeMap(id: number, blob: LayerBlob, map: LayerMap): Promise<void> {
    await mkdir(this.#places.layerDir(id), { recursive: true, mode: 0o700 })
    await writeDurably(this.#places.leavesPath(id), blob.toBytes())
    await writeDurably(this.#places.mapPath(id), map.toBytes())
  }

  /** Writes what a mount needs, and tells what was found out on the way. */
  async #writeFiles(
    id: number,
    blob: LayerBlob,
    tables: Found,
    signal: AbortSignal,
  ): Promise<Pick<FoundLayer, 'inodes' | 'inheritsDirs' | 'hidesBelow'>> {
    const { log } = this.#parts
    const tag = deviceTag(blob)
    const { droppedXattrs, ...found } = await this.#writeTables(id, tag, tables, signal)
    if (droppedXattrs > 0) {
      log.warn(
        { layer: id, attributes: droppedXattrs },
        'extended attributes that EROFS cannot hold are missing from the layer',
      )
    }
    await tables.held.file.flush()
    return found
  }

  async #writeTables(
    id: number,
    tag: string,
    { toc, held, image: made }: Pick<Found, 'toc' | 'held' | 'image'>,
    signal: AbortSignal,
  ): Promise<Omit<MadeImage, 'image'>> {
    const devices = [{ tag, bytes: held.file.map.layerSize }]
    const { image, ...found } =
      made ??
      (await metadataImage(
        { tocs: [toc], derive: 'inherit', devices },
        {
          tables: this.#parts.tables,
          read: (range) => held.read(range, { priority: 'foreground', signal }),
        },
      ))
    await writeDurably(this.#places.tocPath(id), toc)
    await writeDurably(this.#places.metadataPath(id), image)
    await writeSums(this.#places.sumsPath(id), {
      toc: sumOf(toc),
      metadata: sumOf(image),
      map: sumOf(held.file.map.toBytes()),
    })
    return found
  }
}

/** The table of contents of a layer that is here whole and whose file is its tar, as `encodeToc` writes it. */
async function tocOfTar(held: LazyLayer, signal: AbortSignal): Promise<Uint8Array | undefined> {
  const { map, isComplete } = held.file
  if (!isComplete || (map instanceof ChunkLayerMap && map.isRearranged)) return undefined
  const request = { priority: 'background', signal } as const
  const toc = await walkTar(
    (offset, length) => held.read({ start: offset, end: offset + length }, request),
    map.layerSize,
    signal,
  )
  return encodeToc(toc)
}

/** Passes ciphertext on, which must be all of it, and rejects at its end with LayerError DATA_LOSS if it has another HMAC. */
async function* authenticated(
  ciphertext: AsyncIterable<Uint8Array>,
  key: LayerKey,
  expected: Uint8Array,
  { blobDigest }: ImageLayer,
): AsyncGenerator<Uint8Array, void> {
  const hmac = key.hmac()
  for await (const bytes of ciphertext) {
    hmac.update(bytes)
    yield bytes
  }
  if (hmac.matches(expected)) return
  throw new LayerError(
    'DATA_LOSS',
    `layer ${blobDigest}: its ciphertext has another HMAC than its manifest says, so whoever encrypted it did not write this`,
    { digest: blobDigest },
  )
}

/** What the layer's file is called in its image, for people who look at it. */
function deviceTag({ cid }: LayerBlob): string {
  return cid.toString().slice(0, DEVICE_TAG_CHARS)
}

async function* gunzip(
  blob: AsyncIterable<Uint8Array>,
  indexer: GzipIndexer,
): AsyncGenerator<Uint8Array, void> {
  for await (const bytes of blob) yield* indexer.push(bytes)
}

function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.subarray(0, 8)).toString('hex')
}
