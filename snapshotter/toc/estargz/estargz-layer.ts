import { createHash, hash } from 'node:crypto'
import { gunzipSync } from 'node:zlib'
import { LayerError } from '../../errors.ts'
import {
  ChunkLayerMap,
  type ChunkPiece,
  PIECES_MAX,
  tailStart,
} from '../chunked/chunk-layer-map.ts'
import { ENTRIES_MAX, printable, TAR_BLOCK_BYTES } from '../entry-limits.ts'
import { decodeToc, encodeToc } from '../layer-index.ts'
import type { LayerToc, TocEntry } from '../layer-toc.ts'
import type { TableBlob } from '../table-blob.ts'
import { TarStreamWalk } from '../walk-tar.ts'
import { CHUNKED_TOC_BYTES_MAX } from '../zstd-chunked.ts'
import { estargzEntry, type JsonEntry, numberOf, sha256Of, wrong } from './estargz-entry.ts'
import { ESTARGZ_TOC_NAME, isEstargzOwn } from './estargz-own.ts'
import type { StoredEstargzToc } from './fetch-estargz-toc.ts'

/**
 * Headers of one entry at most, in bytes, beside what its names and attributes take, thrice: its own block, a PAX header's, and
 * 1 KiB for records that no table mentions (times, long numbers, a vendor's).
 */
const HEADER_BYTES = 2048

/** What fills the block of a content, and the number of bytes of a tail. */
const PADDING_BYTES = 1024

/** Zeros that end an archive before the table of contents: GNU tar fills up to 10,240 bytes. */
const TRAILER_BYTES = 20 * 1024

/**
 * The table of contents and the map of an eStargz layer, of its table alone. It says where in the blob the gzip member is that
 * starts with a content, but not how long the headers behind that are: so not where anything lies in the tar. The layer file
 * is therefore arranged anew: contents on whole blocks, in the blob's order, and behind each the room that the headers of the
 * entries up to the next content take at most. Of an unverified blob, the manifest must vouch for the table, and
 * the table for every content. Throws LayerError if the table is broken, beyond a limit, or is not laid out so.
 */
export function estargzLayer(
  { stored, start, digest }: StoredEstargzToc,
  blob: TableBlob,
): { toc: LayerToc; map: ChunkLayerMap } {
  const { json, tar } = readToc(stored)
  const actual = `sha256:${createHash('sha256').update(json).digest('hex')}`
  if (digest !== undefined && digest !== actual) {
    const message = `eStargz: its table of contents has the digest ${actual}, the manifest says ${digest}`
    throw new LayerError('DATA_LOSS', message)
  }
  const layout = new Layout()
  const entries: TocEntry[] = []
  const lines = parseEntries(json)
  for (let index = 0; index < lines.length; ) {
    const line = lines[index++]
    if (line === undefined) break
    const chunks = [line]
    for (let next = lines[index]; next?.['type'] === 'chunk'; next = lines[++index]) {
      chunks.push(next)
    }
    const entry = estargzEntry(line)
    layout.header(entry)
    if (entry.kind === 'reg' && entry.size > 0) {
      const layerOffset = layout.content(line, entry.size, chunks)
      entries.push({ ...entry, extents: [{ fileOffset: 0, layerOffset, length: entry.size }] })
    } else {
      if (chunks.length > 1) throw wrong(line, 'has chunks and no content')
      entries.push(entry)
    }
  }
  const pieces = layout.end(start, { blobBytes: stored.length, tar })
  const map = ChunkLayerMap.of(pieces, blob, 'gzip')
  if (blob.unverified && (digest === undefined || !map.isBound)) {
    const message = `eStargz: ${digest === undefined ? 'the manifest has no digest of its table of contents' : 'a chunk has no digest in its table of contents'}`
    throw new LayerError('UNIMPLEMENTED', message)
  }
  const toc = { entries: entries.filter((entry) => !isEstargzOwn(entry)), layerSize: map.layerSize }
  // What a tar walk could not have given is refused there.
  return { toc: decodeToc(encodeToc(toc)), map }
}

/** Lines up gzip members and their places in the layer file. */
class Layout {
  readonly #pieces: ChunkPiece[] = []
  #layerAt = 0
  /** The members whose end is not known yet: those from here on. */
  #open: {
    readonly blobStart: number
    readonly bytes: number
    readonly sha256: Uint8Array | undefined
  } = { blobStart: 0, bytes: 0, sha256: undefined }
  #headerBytes = PADDING_BYTES

  header({ path, linkTarget = '', xattrs }: TocEntry): void {
    let names = path.length + linkTarget.length
    for (const [name, value] of xattrs ?? []) names += name.length + value.length + 32
    this.#headerBytes += HEADER_BYTES + 3 * names
  }

  /** A file's content; returns where it starts in the layer file. */
  content(line: JsonEntry, size: number, chunks: readonly JsonEntry[]): number {
    let layerOffset = 0
    for (const [index, chunk] of chunks.entries()) {
      const next = chunks[index + 1]
      const fileOffset = numberOf(chunk, 'chunkOffset')
      const bytes = (next === undefined ? size : numberOf(next, 'chunkOffset')) - fileOffset
      const declared = numberOf(chunk, 'chunkSize')
      if (
        (index === 0 && fileOffset !== 0) ||
        bytes <= 0 ||
        (declared !== 0 && declared !== bytes)
      ) {
        throw wrong(line, `has a chunk of ${declared} bytes at ${fileOffset}, where ${bytes} are`)
      }
      if (numberOf(chunk, 'innerOffset') !== 0) {
        throw wrong(line, 'shares a gzip member with others (min-chunk-size)')
      }
      this.#close(line, numberOf(chunk, 'offset'), index > 0)
      if (index === 0) layerOffset = this.#layerAt
      this.#open = {
        blobStart: numberOf(chunk, 'offset'),
        bytes,
        sha256:
          sha256Of(chunk, 'chunkDigest') ??
          (chunks.length === 1 ? sha256Of(line, 'digest') : undefined),
      }
      this.#headerBytes = PADDING_BYTES
    }
    return layerOffset
  }

  /** The table of contents is the last part of the tar, and known to the byte. */
  end(start: number, toc: { readonly blobBytes: number; readonly tar: Buffer }): ChunkPiece[] {
    this.#headerBytes += TRAILER_BYTES
    this.#close({ name: ESTARGZ_TOC_NAME }, start, false)
    const sha256 = hash('sha256', toc.tar, 'buffer')
    this.#pieces.push({ blobBytes: toc.blobBytes, layerBytes: toc.tar.length, sha256 })
    return this.#pieces
  }

  /** The open members end at `blobEnd`; behind a chunk that the file goes on after come no headers. */
  #close(line: JsonEntry, blobEnd: number, isWithinFile: boolean): void {
    const { blobStart, bytes, sha256 } = this.#open
    // Of a layer without entries, nothing precedes the table.
    if (blobEnd === 0 && this.#pieces.length === 0) return
    if (blobEnd <= blobStart)
      throw wrong(line, `starts at byte ${blobEnd} of the blob, before what precedes it`)
    const layerEnd = this.#layerAt + tailStart(bytes) + this.#headerBytes
    const blocks = Math.ceil(layerEnd / TAR_BLOCK_BYTES)
    const layerBytes = isWithinFile ? bytes : blocks * TAR_BLOCK_BYTES - this.#layerAt
    this.#pieces.push({
      blobBytes: blobEnd - blobStart,
      layerBytes,
      sha256,
      ...(isWithinFile ? {} : { tailFrom: bytes }),
    })
    if (this.#pieces.length > PIECES_MAX) throw wrong(line, `is one more than ${PIECES_MAX} chunks`)
    this.#layerAt += layerBytes
  }
}

/** The JSON, and the part of the tar that it is in. */
function readToc(stored: Uint8Array): { json: Buffer; tar: Buffer } {
  const broken = (what: string, cause?: unknown): LayerError =>
    new LayerError('DATA_LOSS', `eStargz table of contents: ${what}`, {}, cause)
  let tar: Buffer
  try {
    tar = gunzipSync(stored, { maxOutputLength: CHUNKED_TOC_BYTES_MAX })
  } catch (cause) {
    throw broken(`it does not decode to at most ${CHUNKED_TOC_BYTES_MAX} bytes`, cause)
  }
  const walk = new TarStreamWalk()
  walk.push(tar)
  const { entries } = walk.end()
  const extent = entries[0]?.extents?.[0]
  if (entries.length !== 1 || entries[0]?.path !== ESTARGZ_TOC_NAME || extent === undefined) {
    throw broken(`its tar has not ${printable(ESTARGZ_TOC_NAME)} alone`)
  }
  return { json: tar.subarray(extent.layerOffset, extent.layerOffset + extent.length), tar }
}

function parseEntries(json: Buffer): readonly JsonEntry[] {
  const broken = (what: string, cause?: unknown): LayerError =>
    new LayerError('DATA_LOSS', `eStargz table of contents: ${what}`, {}, cause)
  let toc: unknown
  try {
    toc = JSON.parse(json.toString())
  } catch (cause) {
    throw broken('it is no JSON', cause)
  }
  if (typeof toc !== 'object' || toc === null) throw broken('it is no object')
  const { version, entries } = toc as JsonEntry
  if (version !== 1 || !Array.isArray(entries)) throw broken('it is not of version 1')
  if (entries.length > ENTRIES_MAX + PIECES_MAX) {
    const message = `eStargz table of contents: it has ${entries.length} entries`
    throw new LayerError('RESOURCE_EXHAUSTED', message)
  }
  for (const entry of entries) {
    if (typeof entry !== 'object' || entry === null) throw broken('an entry is no object')
  }
  return entries
}
