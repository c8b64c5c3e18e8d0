import { isUtf8 } from 'node:buffer'
import { createHash } from 'node:crypto'
import zlib from 'node:zlib'
import type { TocEntry } from './layer-toc.ts'
import type { TarTime } from './pax-records.ts'
import type { TarMember } from './walk-tar.ts'
import { SKIPPABLE_HEADER_BYTES, skippableFrame } from './zstd-frames.ts'

/*
 * zstd:chunked as containers/storage defines it (pkg/chunked, docs/containers-storage-zstd-chunked.md) and podman, CRI-O and
 * stargz-snapshotter read it: skippable frames behind the layer with a table of contents in JSON, a tar-split, and footers.
 */

/** Digest of the table of contents, compressed; the reader's trust in all else comes from it. */
export const CHUNKED_CHECKSUM_ANNOTATION = 'io.github.containers.zstd-chunked.manifest-checksum'
/** `offset:length:uncompressed length:1` of the table of contents. */
export const CHUNKED_POSITION_ANNOTATION = 'io.github.containers.zstd-chunked.manifest-position'
/** `offset:length:uncompressed length` of the tar-split. */
export const TAR_SPLIT_POSITION_ANNOTATION = 'io.github.containers.zstd-chunked.tarsplit-position'

/** A table of contents as JSON, in bytes. 150 MiB: what containers/storage reads at most (maxTocSize). */
export const CHUNKED_TOC_BYTES_MAX: number = 150 * 1024 * 1024

/** A chunk of a file: its frame in the blob, its place in the file, its SHA-256 in hex. */
export type ChunkedChunk = {
  readonly start: number
  readonly end: number
  readonly fileOffset: number
  readonly size: number
  readonly sha256: string
}

/** The lines of the table of contents for one entry of the tar, as JSON without the comma between. */
export function chunkedTocLines(
  member: TarMember,
  content: { readonly sha256: string; readonly chunks: readonly ChunkedChunk[] } | undefined,
): string[] {
  const { entry, written } = member
  const name = utf8(written.name)
  const attributes = {
    type: entry.kind,
    name,
    ...(written.linkName === '' ? {} : { linkName: utf8(written.linkName) }),
    mode: written.mode,
    size: entry.size,
    uid: entry.uid,
    gid: entry.gid,
    modtime: rfc3339({ sec: entry.mtimeSec, nsec: entry.mtimeNsec }),
    accesstime: rfc3339(written.accessTime),
    changetime: rfc3339(written.changeTime),
    devMajor: written.devMajor,
    devMinor: written.devMinor,
    ...(entry.xattrs === undefined ? {} : { xattrs: base64Values(entry.xattrs) }),
  }
  const first = content?.chunks[0]
  const last = content?.chunks.at(-1)
  if (content === undefined || first === undefined || last === undefined) {
    return [JSON.stringify(attributes)]
  }
  const file = {
    ...attributes,
    digest: `sha256:${content.sha256}`,
    ...chunkFields(first),
    // The file's own entry spans all chunks; containers/storage takes their ends from those that follow.
    endOffset: last.end,
  }
  const more = content.chunks
    .slice(1)
    .map((chunk) => ({ type: 'chunk', name, ...chunkFields(chunk), chunkOffset: chunk.fileOffset }))
  return [file, ...more].map((line) => JSON.stringify(line))
}

function chunkFields(chunk: ChunkedChunk): Record<string, string | number> {
  return {
    offset: chunk.start,
    endOffset: chunk.end,
    chunkSize: chunk.size,
    chunkDigest: `sha256:${chunk.sha256}`,
  }
}

/**
 * Why zstd:chunked cannot have this entry, or undefined. Its readers compare the table of contents with what Go's archive/tar
 * makes of the tar-split, and fail the whole pull where they differ; without a table they fetch the layer as usual.
 */
export function chunkedObstacle({ entry, written }: TarMember): string | undefined {
  if (written.peculiarity !== undefined) return written.peculiarity
  const names = [written.name, written.linkName, ...(entry.xattrs?.keys() ?? [])]
  if (!names.every((name) => isUtf8(Buffer.from(name, 'latin1'))))
    return 'has a name that is not UTF-8'
  const times = [{ sec: entry.mtimeSec, nsec: 0 }, written.accessTime, written.changeTime]
  // Go writes and reads years of four digits in JSON. These are the seconds of 0000-01-01 and 10000-01-01.
  const fits = times.every(
    (time) => time === undefined || (time.sec >= -62_167_219_200 && time.sec < 253_402_300_800),
  )
  return fits ? undefined : 'has a time outside the years 0 to 9999'
}

/** What zstd:chunked adds to a layer: frames to append to the blob, and annotations of its descriptor. */
export type ChunkedTables = {
  readonly bytes: Uint8Array
  readonly annotations: Readonly<Record<string, string>>
}

/** The tables of a layer whose blob is `offset` bytes long so far. */
export function chunkedTables(
  tocLines: readonly string[],
  tarSplit: { compressed: Uint8Array; digest: string; uncompressedBytes: number },
  offset: number,
): ChunkedTables {
  const json = Buffer.from(
    `{"version":1,"tarSplitDigest":"${tarSplit.digest}","entries":[\n${tocLines.join(',\n')}\n]}\n`,
  )
  const toc = zlib.zstdCompressSync(json)
  const tocOffset = offset + SKIPPABLE_HEADER_BYTES
  const tarSplitOffset = tocOffset + toc.length + SKIPPABLE_HEADER_BYTES
  const footer = [tocOffset, toc.length, json.length, 1]
  const splitFooter = [tarSplitOffset, tarSplit.compressed.length, tarSplit.uncompressedBytes]
  return {
    bytes: Buffer.concat([
      skippableFrame(toc),
      skippableFrame(tarSplit.compressed),
      // Nobody who has the annotations reads a footer. The first is containers/storage's of today; stargz-snapshotter looks
      // for the 40 bytes of the first version at the very end.
      skippableFrame(footerBytes([...footer, ...splitFooter], 'GNUlInUx')),
      skippableFrame(footerBytes(footer, 'GnUlInUx')),
    ]),
    annotations: {
      [CHUNKED_CHECKSUM_ANNOTATION]: `sha256:${createHash('sha256').update(toc).digest('hex')}`,
      [CHUNKED_POSITION_ANNOTATION]: footer.join(':'),
      [TAR_SPLIT_POSITION_ANNOTATION]: splitFooter.join(':'),
    },
  }
}

/** Numbers of 8 bytes, little-endian, and the magic. */
function footerBytes(numbers: readonly number[], magic: string): Uint8Array {
  const footer = Buffer.alloc(8 * numbers.length + 8)
  for (const [index, number] of numbers.entries()) {
    footer.writeBigUInt64LE(BigInt(number), 8 * index)
  }
  footer.write(magic, 8 * numbers.length, 'latin1')
  return footer
}

function base64Values(xattrs: NonNullable<TocEntry['xattrs']>): Record<string, string> {
  return Object.fromEntries(
    [...xattrs].map(([name, value]) => [utf8(name), Buffer.from(value).toString('base64')]),
  )
}

function rfc3339(time: TarTime | undefined): string | undefined {
  if (time === undefined) return undefined
  const seconds = new Date(time.sec * 1000).toISOString().slice(0, 19)
  const fraction = String(time.nsec).padStart(9, '0').replace(/0+$/, '')
  return fraction === '' ? `${seconds}Z` : `${seconds}.${fraction}Z`
}

function utf8(latin1: string): string {
  return Buffer.from(latin1, 'latin1').toString()
}
