import { createHash, hash } from 'node:crypto'
import { LayerError } from '../../errors.ts'
import { printable } from '../entry-limits.ts'
import type { LayerToc } from '../layer-toc.ts'
import type { TableBlob } from '../table-blob.ts'
import { walkTar } from '../walk-tar.ts'
import { decodeZstdFrames } from '../zstd-frames.ts'
import { ChunkLayerMap, type ChunkPiece } from './chunk-layer-map.ts'
import { type ChunkedFile, chunkedContents } from './chunked-contents.ts'
import type { StoredChunkedTables } from './fetch-chunked-tables.ts'
import { SplitTar } from './split-tar.ts'

/**
 * The table of contents and the map of a zstd:chunked layer, of its tables alone. The tar-split has every byte of the tar but
 * contents: it is walked as the tar would be, and so gives the same entries at the same places. The JSON says in which frames
 * of the blob each content is; what lies between two contents in the tar is what lies between their frames in the blob.
 * Both must name the same files in the same order. Of an unverified blob, the table, for which the manifest vouches, must do so for
 * the tar-split and every content, and the map gets a digest of all that lies between two contents. Throws LayerError if they do not, if either is broken or beyond a limit, and as `walkTar`.
 */
export async function joinChunkedTables(
  { toc: json, tarSplit, framesEnd, digest }: StoredChunkedTables,
  blob: TableBlob,
  signal: AbortSignal,
): Promise<{ toc: LayerToc; map: ChunkLayerMap }> {
  if (blob.unverified && digest === undefined) {
    const message = 'zstd:chunked: the manifest has no digest of its table of contents'
    throw new LayerError('UNIMPLEMENTED', message)
  }
  const tar = new SplitTar(decodeZstdFrames(tarSplit.stored, tarSplit.bytes))
  const { files, tarSplitDigest } = chunkedContents(decodeZstdFrames(json.stored, json.bytes))
  if (blob.unverified) checkTarSplit(tarSplit.stored, tarSplitDigest)
  const toc = await walkTar((offset, length) => tar.read(offset, length), tar.size, signal)
  const pieces = new Pieces(blob.unverified ? tar : undefined)
  let file = 0
  for (const { path, kind, size, extents } of toc.entries) {
    if (kind !== 'reg' || size === 0) continue
    const hole = tar.holes[file]
    const found = files[file++]
    const [extent, ...more] = extents ?? []
    if (extent === undefined || more.length > 0 || extent.length !== size) {
      throw new LayerError('UNIMPLEMENTED', `zstd:chunked: ${printable(path)} is a sparse file`)
    }
    if (hole === undefined || hole.start !== extent.layerOffset || hole.length !== size) {
      throw differ(`the content of ${printable(path)} is not where its tar-split has one`)
    }
    if (found === undefined || found.path !== path || found.size !== size) {
      throw differ(
        `${printable(path)} of ${size} bytes is not the next file of its table of contents`,
      )
    }
    pieces.file(hole.start, found)
  }
  if (file !== files.length || file !== tar.holes.length) {
    throw differ(`its tar has ${file} files with content, its table of contents ${files.length}`)
  }
  pieces.between(tar.size, framesEnd)
  const map = ChunkLayerMap.of(pieces.all, blob)
  if (blob.unverified && !map.isBound) {
    throw new LayerError('UNIMPLEMENTED', 'zstd:chunked: a chunk has no digest in its table')
  }
  return { toc, map }
}

function checkTarSplit(stored: Uint8Array, promised: string | undefined): void {
  const digest = `sha256:${createHash('sha256').update(stored).digest('hex')}`
  if (promised === undefined) {
    const message =
      'zstd:chunked: its table of contents has no digest of its tar-split: a writer before 2024'
    throw new LayerError('UNIMPLEMENTED', message)
  }
  if (promised === digest) return
  const message = `zstd:chunked: its tar-split has the digest ${digest}, its table of contents says ${promised.slice(0, 80)}`
  throw new LayerError('DATA_LOSS', message)
}

/** Lines up what lies in the tar with what lies in the blob, both from front to back. */
class Pieces {
  readonly all: ChunkPiece[] = []
  readonly #headers: SplitTar | undefined
  #layerAt = 0
  #blobAt = 0

  /** With `headers`, what lies between contents gets the digest that it has there. */
  constructor(headers: SplitTar | undefined) {
    this.#headers = headers
  }

  /** A file's content starts at `layerStart` of the tar. */
  file(layerStart: number, { path, chunks }: ChunkedFile): void {
    const first = chunks[0]
    if (first === undefined) throw differ(`${printable(path)} has no chunks`)
    this.between(layerStart, first.start)
    for (const { start, end, size, sha256 } of chunks) {
      this.all.push({ blobBytes: end - start, layerBytes: size, sha256 })
      this.#layerAt += size
      this.#blobAt = end
    }
  }

  /** Headers and padding up to the next content, or to the end. */
  between(layerEnd: number, blobEnd: number): void {
    const [layerBytes, blobBytes] = [layerEnd - this.#layerAt, blobEnd - this.#blobAt]
    if (blobBytes < 0 || layerBytes < 0 || (layerBytes === 0) !== (blobBytes === 0)) {
      const place = `from byte ${this.#blobAt} to ${blobEnd} of the blob`
      throw differ(`${layerBytes} bytes of headers and padding lie ${place}`)
    }
    if (layerBytes > 0) {
      const bytes = this.#headers?.read(this.#layerAt, layerBytes)
      const sha256 = bytes && hash('sha256', bytes, 'buffer')
      this.all.push({ blobBytes, layerBytes, sha256 })
    }
    this.#layerAt = layerEnd
    this.#blobAt = blobEnd
  }
}

function differ(what: string): LayerError {
  return new LayerError('INVALID_ARGUMENT', `zstd:chunked: ${what}`)
}
