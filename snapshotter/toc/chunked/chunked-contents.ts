import { LayerError } from '../../errors.ts'
import { cleanPath, ENTRIES_MAX, printable } from '../entry-limits.ts'
import { PIECES_MAX } from './chunk-layer-map.ts'

/** The content of one file, as a table of contents of zstd:chunked says where it lies in the blob. */
export type ChunkedFile = {
  /** As `TocEntry.path`. */
  readonly path: string
  readonly size: number
  /** In the file's order and the blob's, each ending where the next starts. */
  readonly chunks: readonly {
    readonly start: number
    readonly end: number
    readonly size: number
    readonly sha256: Uint8Array | undefined
  }[]
}

/** What a table of contents of zstd:chunked has that the tar's headers do not. */
export type ChunkedContents = {
  readonly files: readonly ChunkedFile[]
  /** Of the tar-split as it is stored: what vouches for the table vouches for that too. Undefined if the table does not say. */
  readonly tarSplitDigest: string | undefined
}

type Entry = Readonly<Record<string, unknown>>

/**
 * The files with content of a zstd:chunked table of contents, in its order, and the digest of its tar-split: a `reg` entry, and a `chunk` entry for each chunk
 * after the first (containers/storage, pkg/chunked/internal/minimal). All else that it says of entries is also in the tar's
 * headers, and read there. Throws LayerError: DATA_LOSS if it is no such table, INVALID_ARGUMENT for positions that cannot be.
 */
export function chunkedContents(json: Uint8Array): ChunkedContents {
  const files: ChunkedFile[] = []
  const { entries, tarSplitDigest } = parseTable(json)
  for (let index = 0; index < entries.length; ) {
    const entry = entries[index++]
    if (entry === undefined) break
    const more: Entry[] = []
    for (let next = entries[index]; next?.['type'] === 'chunk'; next = entries[++index]) {
      more.push(next)
    }
    const size = wholeNumber(entry, 'size')
    if (entry['type'] === 'reg' && size > 0) files.push(fileOf(entry, size, more))
    else if (entry['type'] === 'chunk' || more.length > 0) {
      throw wrong(entry, 'has chunks and no content')
    }
  }
  return { files, tarSplitDigest }
}

function parseTable(json: Uint8Array): {
  readonly entries: readonly Entry[]
  readonly tarSplitDigest: string | undefined
} {
  const broken = (what: string, cause?: unknown): LayerError =>
    new LayerError('DATA_LOSS', `zstd:chunked table of contents: ${what}`, {}, cause)
  let toc: unknown
  try {
    toc = JSON.parse(Buffer.from(json.buffer, json.byteOffset, json.length).toString())
  } catch (cause) {
    throw broken('it is no JSON', cause)
  }
  if (typeof toc !== 'object' || toc === null) throw broken('it is no object')
  const { version, entries, tarSplitDigest } = toc as Entry
  if (version !== 1 || !Array.isArray(entries)) throw broken('it is not of version 1')
  if (entries.length > ENTRIES_MAX + PIECES_MAX) {
    const message = `zstd:chunked table of contents: it has ${entries.length} entries`
    throw new LayerError('RESOURCE_EXHAUSTED', message)
  }
  for (const entry of entries) {
    if (typeof entry !== 'object' || entry === null) throw broken('an entry is no object')
  }
  const isSaid = typeof tarSplitDigest === 'string' && tarSplitDigest !== ''
  return { entries, tarSplitDigest: isSaid ? tarSplitDigest : undefined }
}

function fileOf(entry: Entry, size: number, more: readonly Entry[]): ChunkedFile {
  const place = { path: nameOf(entry), offset: wholeNumber(entry, 'offset') }
  const chunks = [entry, ...more].map((chunk) => ({
    start: wholeNumber(chunk, 'offset'),
    fileOffset: wholeNumber(chunk, 'chunkOffset'),
    size: wholeNumber(chunk, 'chunkSize'),
    sha256: sha256Of(chunk, 'chunkDigest'),
  }))
  const end = wholeNumber(entry, 'endOffset')
  return {
    path: cleanPath(place.path, place),
    size,
    chunks: chunks.map((chunk, index) => {
      const next = chunks[index + 1]
      const chunkSize = (next?.fileOffset ?? size) - chunk.fileOffset
      const chunkEnd = next?.start ?? end
      if (index === 0 && chunk.fileOffset !== 0) throw wrong(entry, 'does not start with its start')
      // Zero, or left out, is the rest of the file.
      if (chunkSize <= 0 || (chunk.size !== 0 && chunk.size !== chunkSize)) {
        throw wrong(entry, `has a chunk of ${chunk.size} bytes where ${chunkSize} are`)
      }
      if (chunkEnd <= chunk.start) throw wrong(entry, `has a chunk up to ${chunkEnd}, its start`)
      // The only chunk of a file has no digest but the file's.
      const sha256 = chunk.sha256 ?? (more.length === 0 ? sha256Of(entry, 'digest') : undefined)
      return { start: chunk.start, end: chunkEnd, size: chunkSize, sha256 }
    }),
  }
}

/** JSON is UTF-8, names of ours are bytes. */
function nameOf(entry: Entry): string {
  const { name } = entry
  return typeof name === 'string' ? Buffer.from(name).toString('latin1') : ''
}

function wholeNumber(entry: Entry, field: string): number {
  const value = entry[field] ?? 0
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value
  throw wrong(entry, `has a ${field} that is no whole number`)
}

function sha256Of(entry: Entry, field: string): Uint8Array | undefined {
  const digest = entry[field] ?? ''
  if (digest === '') return undefined
  const match = typeof digest === 'string' ? /^sha256:([0-9a-f]{64})$/.exec(digest) : null
  if (match?.[1] === undefined) throw wrong(entry, `has a ${field} that is no SHA-256`)
  return Buffer.from(match[1], 'hex')
}

function wrong(entry: Entry, what: string): LayerError {
  const message = `zstd:chunked table of contents: ${printable(nameOf(entry))} ${what}`
  return new LayerError('INVALID_ARGUMENT', message)
}
