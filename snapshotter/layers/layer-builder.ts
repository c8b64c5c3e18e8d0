import { createHash, type Hash } from 'node:crypto'
import { mkdir, readFile, rm } from 'node:fs/promises'
import { CID } from 'multiformats/cid'
import type { BlobStore } from '../blobs/blob-store.ts'
import type { LayerMap } from '../blobs/layer-map.ts'
import type { LazyLayer } from '../blobs/lazy-layer.ts'
import type { BlockSource } from '../block-source.ts'
import type { ByteRange } from '../byte-range.ts'
import { UnixfsFile } from '../dag/unixfs-file.ts'
import { isEncrypted, parseLayerEncryption } from '../encryption/layer-encryption.ts'
import { ImageError, LayerError } from '../errors.ts'
import type { Log } from '../log.ts'
import { parseDigest } from '../oci/digest.ts'
import { decodeZstdStream } from '../toc/decode-zstd-stream.ts'
import { GzipIndexer } from '../toc/gzip/gzip-indexer.ts'
import { decodeToc, encodeToc } from '../toc/layer-index.ts'
import type { LayerToc } from '../toc/layer-toc.ts'
import { fetchLayerIndex } from '../toc/read-layer-toc.ts'
import { SNIFF_BYTES, sniffCompression } from '../toc/sniff-compression.ts'
import { TarLayerMap } from '../toc/tar-layer-map.ts'
import { TarStreamWalk, walkTar } from '../toc/walk-tar.ts'
import type { FoundLayer, ImageLayer, LayerFormat, LayerRecord } from './catalog.ts'
import { writeDurably } from './durable-file.ts'
import { fuseInode, type LayerPlaces } from './layer-places.ts'
import { LeafSource } from './leaf-source.ts'
import { metadataImage } from './metadata-image.ts'
import { readLayerMap } from './read-layer-map.ts'
import { StreamedLayerMap } from './streamed-layer-map.ts'
import type { TableThread } from './table-thread.ts'

/** A layer that expands further than this, and beyond `EXPANSION_FREE_BYTES`, is a bomb. Debian's layers reach 4, logs 30. */
const EXPANSION_MAX = 100
/** 1 GiB: one sparse or zero-filled file of that size in a small layer is no attack. */
const EXPANSION_FREE_BYTES = 1024 ** 3

/** A layer that can be mounted. */
export type BuiltLayer = FoundLayer & { readonly held: LazyLayer }

type Parts = {
  readonly tables: TableThread
  readonly store: BlobStore
  readonly blocks: BlockSource
  readonly log: Log
}

type Found = {
  readonly format: LayerFormat
  /** As `encodeToc` writes it. */
  readonly toc: Uint8Array
  readonly held: LazyLayer
  readonly notLazyBecause: string | undefined
  /** Its diff ID was checked, since all of it was read. */
  readonly verified: boolean
}

/** Makes layers mountable: finds or makes the table of contents, the map and the EROFS metadata image, durably. */
export class LayerBuilder {
  readonly #places: LayerPlaces
  readonly #layerBytesMax: number
  readonly #parts: Parts

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
    try {
      refuseEncrypted(layer)
      const { blocks } = this.#parts
      const request = { priority: 'foreground', signal } as const
      const blob = await UnixfsFile.open(CID.parse(layer.blobCid), blocks, request)
      if (blob.size !== layer.blobSize) {
        throw new ImageError(
          'DATA_LOSS',
          `layer ${layer.blobDigest} has ${blob.size} bytes at ${layer.blobCid}, its manifest says ${layer.blobSize}`,
          { digest: layer.blobDigest, cid: layer.blobCid },
        )
      }
      await mkdir(this.#places.layerDir(id), { recursive: true, mode: 0o700 })
      const found = await this.#find(id, layer, blob, signal)
      const image = await this.#writeFiles(id, blob, found, signal)
      return { ...found, ...image, layerSize: found.held.file.map.layerSize }
    } catch (error) {
      await this.#parts.store.remove(fuseInode(id))
      await rm(this.#places.layerDir(id), { recursive: true, force: true })
      throw error
    }
  }

  /** Holds a layer that was built before, from what is on disk alone. Rejects with LayerError if that is damaged. */
  async reopen(record: LayerRecord): Promise<LazyLayer> {
    const map = readLayerMap(await readFile(this.#places.mapPath(record.id)))
    return this.#hold(record.id, map)
  }

  /** The table of contents of a layer that was built. */
  async toc(id: number): Promise<LayerToc> {
    return decodeToc(await readFile(this.#places.tocPath(id)))
  }

  async #find(
    id: number,
    layer: ImageLayer,
    blob: UnixfsFile,
    signal: AbortSignal,
  ): Promise<Found> {
    const request = { priority: 'foreground', signal } as const
    const read = (range: ByteRange): Promise<Uint8Array> => blob.readRange(range, request)
    const index = await fetchLayerIndex(layer.annotations, read, blob.size, signal)
    if (index !== undefined) {
      const { toc, map: mapBytes } = await this.#parts.tables.index({
        kind: 'index',
        ...index,
        blobSize: blob.size,
      })
      const map = readLayerMap(mapBytes)
      await this.#writeMap(id, blob, map)
      const held = await this.#hold(id, map)
      return { format: 'tar+zstd', toc, held, notLazyBecause: undefined, verified: false }
    }
    const start = await read({ start: 0, end: Math.min(SNIFF_BYTES, blob.size) })
    const compression = sniffCompression(start)
    if (compression === 'tar') return this.#findInTar(id, blob, signal)
    if (compression !== 'unknown') return this.#readWhole(id, layer, blob, compression, signal)
    throw new LayerError(
      'INVALID_ARGUMENT',
      `layer ${layer.blobDigest} (${layer.mediaType}) is neither tar nor gzip nor zstd, it starts with ${hexOf(start)}: an encrypted or damaged layer`,
      { digest: layer.blobDigest },
    )
  }

  /** Reads only the headers of a plain tar; the leaves that hold them are kept, contents stay where they are. */
  async #findInTar(id: number, blob: UnixfsFile, signal: AbortSignal): Promise<Found> {
    const map = new TarLayerMap(blob.leafStarts.subarray(1))
    await this.#writeMap(id, blob, map)
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
    }
  }

  /** Reads a layer without a table of contents from front to back, keeps all of it, and checks it on the way. */
  async #readWhole(
    id: number,
    layer: ImageLayer,
    blob: UnixfsFile,
    compression: 'gzip' | 'zstd',
    signal: AbortSignal,
  ): Promise<Found> {
    const { store, log } = this.#parts
    const outputBytesMax = Math.min(
      this.#layerBytesMax,
      Math.max(EXPANSION_FREE_BYTES, blob.size * EXPANSION_MAX),
    )
    const request = { priority: 'foreground', signal } as const
    const reading = new LayerReading(layer)
    const content = reading.ofBlob(blob.stream({ start: 0, end: blob.size }, request))
    const gzip = new GzipIndexer({ outputBytesMax })
    const layerBytes =
      compression === 'gzip'
        ? gunzip(content, gzip)
        : decodeZstdStream(content, { outputBytesMax, signal })
    log.info(
      { layer: layer.blobDigest, bytes: blob.size },
      `layer ${layer.blobDigest} has no table of contents: reading all ${blob.size} bytes of it once`,
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
      notLazyBecause: `it is ${compression} without a table of contents, so it was read whole once; push it again with ipdr push`,
      verified: true,
    }
  }

  async #hold(id: number, map: LayerMap): Promise<LazyLayer> {
    const { store, blocks } = this.#parts
    const source = new LeafSource(this.#places.leavesPath(id), map, blocks)
    return store.add({ inode: fuseInode(id), name: String(id), map, source })
  }

  async #writeMap(id: number, blob: UnixfsFile, map: LayerMap): Promise<void> {
    await writeDurably(this.#places.leavesPath(id), blob.toBytes())
    await writeDurably(this.#places.mapPath(id), map.toBytes())
  }

  /** Writes what a mount needs, and tells what was found out on the way. */
  async #writeFiles(
    id: number,
    blob: UnixfsFile,
    { toc, held }: Found,
    signal: AbortSignal,
  ): Promise<Pick<FoundLayer, 'inodes' | 'inheritsDirs' | 'hidesBelow'>> {
    const { log, tables } = this.#parts
    const { image, droppedXattrs, ...found } = await metadataImage(
      {
        tocs: [toc],
        derive: 'inherit',
        devices: [{ tag: blob.cid.toString().slice(0, 64), bytes: held.file.map.layerSize }],
      },
      { tables, read: (range) => held.read(range, { priority: 'foreground', signal }) },
    )
    if (droppedXattrs > 0) {
      log.warn(
        { layer: id, attributes: droppedXattrs },
        'extended attributes that EROFS cannot hold are missing from the layer',
      )
    }
    await writeDurably(this.#places.tocPath(id), toc)
    await writeDurably(this.#places.metadataPath(id), image)
    await held.file.flush()
    return found
  }
}

/** Checks a layer that is read from front to back against its manifest, and finds its table of contents. */
class LayerReading {
  readonly #layer: ImageLayer
  readonly #blobHash: Hash
  readonly #layerHash: Hash
  readonly #walk = new TarStreamWalk()

  constructor(layer: ImageLayer) {
    this.#layer = layer
    this.#blobHash = createHash(parseDigest(layer.blobDigest).algorithm)
    this.#layerHash = createHash(parseDigest(layer.diffId).algorithm)
  }

  async *ofBlob(blob: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void> {
    for await (const bytes of blob) {
      this.#blobHash.update(bytes)
      yield bytes
    }
  }

  ofLayer(bytes: Uint8Array): void {
    this.#layerHash.update(bytes)
    this.#walk.push(bytes)
  }

  /** Throws LayerError DATA_LOSS if the bytes are not those of the digests. */
  finish(): LayerToc {
    const toc = this.#walk.end()
    this.#check('blob', this.#layer.blobDigest, this.#blobHash)
    this.#check('tar', this.#layer.diffId, this.#layerHash)
    return toc
  }

  #check(what: string, promised: string, hash: Hash): void {
    const actual = `${parseDigest(promised).algorithm}:${hash.digest('hex')}`
    if (actual === promised) return
    throw new LayerError(
      'DATA_LOSS',
      `layer ${this.#layer.blobDigest}: its ${what} has the digest ${actual}, the image says ${promised}`,
      { digest: this.#layer.blobDigest, actual, promised },
    )
  }
}

/** Before a byte is fetched: ciphertext is random, and one in 65,536 starts as gzip does. Throws LayerError UNIMPLEMENTED. */
function refuseEncrypted({ mediaType, annotations, blobDigest }: ImageLayer): void {
  if (!isEncrypted(mediaType)) return
  const { recipientKinds } = parseLayerEncryption(annotations, blobDigest)
  throw new LayerError(
    'UNIMPLEMENTED',
    `layer ${blobDigest} is encrypted for ${recipientKinds.join(', ')}, and encrypted layers are not read yet: push the image again without encryption if its contents may be seen`,
    { digest: blobDigest, mediaType },
  )
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
