import { createHash } from 'node:crypto'
import type { ByteRange } from '../../byte-range.ts'
import { LayerError } from '../../errors.ts'
import {
  CHUNKED_CHECKSUM_ANNOTATION,
  CHUNKED_POSITION_ANNOTATION,
  CHUNKED_TOC_BYTES_MAX,
  TAR_SPLIT_POSITION_ANNOTATION,
} from '../zstd-chunked.ts'
import { SKIPPABLE_HEADER_BYTES } from '../zstd-frames.ts'

/** One of the tables: compressed, and how many bytes it decompresses to. */
export type StoredTable = { readonly stored: Uint8Array; readonly bytes: number }

/** The tables of a zstd:chunked layer as they are stored in the blob, and where the frames of the layer end there. */
export type StoredChunkedTables = {
  readonly toc: StoredTable
  readonly tarSplit: StoredTable
  readonly framesEnd: number
  /** Of the table of contents as stored, checked; undefined if the annotations do not say it. */
  readonly digest: string | undefined
}

/** A table as stored, in bytes. 64 MiB: 512 MiB of JSON, which zstd takes to an eighth and less. */
const STORED_BYTES_MAX = 64 * 1024 * 1024

/** A tar-split, in bytes. 512 MiB: 700,000 entries × 750 B, a header in Base64 and a line for the content. */
const TAR_SPLIT_BYTES_MAX = 512 * 1024 * 1024

/** The footer that says where both tables are: 7 numbers of 8 bytes and the magic. */
const FOOTER_BYTES = 64
const FOOTER_MAGIC = 'GNUlInUx'
/** The footer of zstd:chunked's first version, which `ipdr push` writes behind it: a skippable frame of 40 bytes. */
const OLD_FOOTER_FRAME_BYTES = 48

type Position = { readonly start: number; readonly end: number; readonly bytes: number }
type Positions = { readonly toc: Position; readonly tarSplit: Position }

/**
 * Fetches the tables of a zstd:chunked layer. `annotations` are those of its descriptor; without them the footer is looked for at
 * the end of the blob. Undefined if there is neither. Rejects with LayerError if there is one and it cannot be used: DATA_LOSS
 * (other bytes than the manifest promises), INVALID_ARGUMENT (a lie), RESOURCE_EXHAUSTED (too long), UNIMPLEMENTED (no
 * tar-split: a writer before 2024); passes on what `readBlob` rejects with.
 */
export async function fetchChunkedTables(
  annotations: Readonly<Record<string, string>>,
  readBlob: (range: ByteRange, signal: AbortSignal) => Promise<Uint8Array>,
  blobSize: number,
  signal: AbortSignal,
): Promise<StoredChunkedTables | undefined> {
  const positions =
    annotatedPositions(annotations, blobSize) ??
    footerPositions(
      await readBlob({ start: Math.max(0, blobSize - FOOTER_REACH_BYTES), end: blobSize }, signal),
      blobSize,
    )
  if (positions === undefined) return undefined
  const { toc, tarSplit } = positions
  const stored = await readBlob({ start: toc.start, end: toc.end }, signal)
  const promised = annotations[CHUNKED_CHECKSUM_ANNOTATION]
  const digest = `sha256:${createHash('sha256').update(stored).digest('hex')}`
  if (promised !== undefined && promised !== digest) {
    const message = `zstd:chunked table of contents: it has the digest ${digest}, the manifest says ${promised}`
    throw new LayerError('DATA_LOSS', message)
  }
  return {
    toc: { stored, bytes: toc.bytes },
    tarSplit: {
      stored: await readBlob({ start: tarSplit.start, end: tarSplit.end }, signal),
      bytes: tarSplit.bytes,
    },
    framesEnd: Math.min(toc.start, tarSplit.start) - SKIPPABLE_HEADER_BYTES,
    digest: promised,
  }
}

const FOOTER_REACH_BYTES = FOOTER_BYTES + OLD_FOOTER_FRAME_BYTES

function annotatedPositions(
  annotations: Readonly<Record<string, string>>,
  blobSize: number,
): Positions | undefined {
  const toc = annotations[CHUNKED_POSITION_ANNOTATION]
  if (toc === undefined) return undefined
  const numbers = /^([0-9]{1,15}):([0-9]{1,15}):([0-9]{1,15}):1$/.exec(toc)
  if (numbers === null) {
    throw unusable(
      `annotation ${CHUNKED_POSITION_ANNOTATION} "${toc}" is not offset:length:bytes:1`,
    )
  }
  const tarSplit = annotations[TAR_SPLIT_POSITION_ANNOTATION]
  if (tarSplit === undefined) throw withoutTarSplit()
  const more = /^([0-9]{1,15}):([0-9]{1,15}):([0-9]{1,15})$/.exec(tarSplit)
  if (more === null) {
    throw unusable(
      `annotation ${TAR_SPLIT_POSITION_ANNOTATION} "${tarSplit}" is not offset:length:bytes`,
    )
  }
  return checked(numbers.slice(1, 4).map(Number), more.slice(1, 4).map(Number), blobSize)
}

function footerPositions(tail: Uint8Array, blobSize: number): Positions | undefined {
  const bytes = Buffer.from(tail.buffer, tail.byteOffset, tail.length)
  for (const behind of [0, OLD_FOOTER_FRAME_BYTES]) {
    const end = bytes.length - behind
    if (end < FOOTER_BYTES || bytes.toString('latin1', end - 8, end) !== FOOTER_MAGIC) continue
    const numbers = Array.from({ length: 7 }, (_, index) =>
      Number(bytes.readBigUInt64LE(end - FOOTER_BYTES + 8 * index)),
    )
    if (numbers[3] !== 1) throw unusable('its footer names a table of an unknown type')
    if (numbers[4] === 0) throw withoutTarSplit()
    return checked(numbers.slice(0, 3), numbers.slice(4, 7), blobSize)
  }
  return undefined
}

function checked(toc: readonly number[], tarSplit: readonly number[], blobSize: number): Positions {
  return {
    toc: position(toc, 'table of contents', CHUNKED_TOC_BYTES_MAX, blobSize),
    tarSplit: position(tarSplit, 'tar-split', TAR_SPLIT_BYTES_MAX, blobSize),
  }
}

function position(
  [start = 0, length = 0, bytes = 0]: readonly number[],
  what: string,
  bytesMax: number,
  blobSize: number,
): Position {
  if (start < SKIPPABLE_HEADER_BYTES || length === 0 || start + length > blobSize) {
    throw unusable(`its ${what} would be ${length} bytes at ${start} of a blob of ${blobSize}`)
  }
  if (length > STORED_BYTES_MAX || bytes > bytesMax) {
    const message = `zstd:chunked: its ${what} has ${length} bytes that decode to ${bytes}, the limits are ${STORED_BYTES_MAX} and ${bytesMax}`
    throw new LayerError('RESOURCE_EXHAUSTED', message)
  }
  return { start, end: start + length, bytes }
}

function withoutTarSplit(): LayerError {
  return new LayerError(
    'UNIMPLEMENTED',
    'its zstd:chunked table of contents has no tar-split, so that headers cannot be placed',
  )
}

function unusable(why: string): LayerError {
  return new LayerError('INVALID_ARGUMENT', `zstd:chunked: ${why}`)
}
