import { LayerError } from '../../errors.ts'
import { printable } from '../entry-limits.ts'
import type { LayerToc } from '../layer-toc.ts'
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
 * Both must name the same files in the same order. Throws LayerError if they do not, if either is broken or beyond a limit,
 * and as `walkTar`.
 */
export async function joinChunkedTables(
  { toc: json, tarSplit, framesEnd }: StoredChunkedTables,
  blob: { readonly size: number; readonly leafStarts: Float64Array },
  signal: AbortSignal,
): Promise<{ toc: LayerToc; map: ChunkLayerMap }> {
  const tar = new SplitTar(decodeZstdFrames(tarSplit.stored, tarSplit.bytes))
  const files = chunkedContents(decodeZstdFrames(json.stored, json.bytes))
  const toc = await walkTar((offset, length) => tar.read(offset, length), tar.size, signal)
  const pieces = new Pieces()
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
  return { toc, map: ChunkLayerMap.of(pieces.all, blob) }
}

/** Lines up what lies in the tar with what lies in the blob, both from front to back. */
class Pieces {
  readonly all: ChunkPiece[] = []
  #layerAt = 0
  #blobAt = 0

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
    if (layerBytes > 0) this.all.push({ blobBytes, layerBytes, sha256: undefined })
    this.#layerAt = layerEnd
    this.#blobAt = blobEnd
  }
}

function differ(what: string): LayerError {
  return new LayerError('INVALID_ARGUMENT', `zstd:chunked: ${what}`)
}
