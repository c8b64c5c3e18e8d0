import type { ByteRange } from '../byte-range.ts'

/** Which bytes of a file a start of its image reads, in any order. Names are spelled as in `TocEntry`. */
export type StartReads = (file: {
  readonly path: string
  readonly size: number
}) => readonly ByteRange[]

/** A part of a content, up to byte `end` of it, that a start reads or does not read. */
export type ContentPart = { readonly end: number; readonly isRead: boolean }

/** What the kernel reads of a file at least, in bytes: a page. */
const PAGE_BYTES = 4096

/**
 * Bytes between two reads of a content that count as read, too: 32 KiB. Compressed some 12 KiB, which are on a link of 100 Mbit/s in 1 ms;
 * the request that a leaf more would be costs both ends as much.
 */
export const CONTENT_BRIDGE_BYTES: number = 32 * 1024

/** The parts of a content of `size` bytes, in order and up to its end. Reads beyond it are clipped. */
export function contentParts(reads: readonly ByteRange[], size: number): ContentPart[] {
  const parts: { end: number; isRead: boolean }[] = []
  let at = 0
  for (const read of reads.toSorted((a, b) => a.start - b.start)) {
    const start = Math.floor(read.start / PAGE_BYTES) * PAGE_BYTES
    const end = Math.min(Math.ceil(read.end / PAGE_BYTES) * PAGE_BYTES, size)
    if (end <= at || end <= start) continue
    const last = parts.at(-1)
    if (last !== undefined && start - at <= CONTENT_BRIDGE_BYTES) last.end = end
    else {
      if (start > at) parts.push({ end: start, isRead: false })
      parts.push({ end, isRead: true })
    }
    at = end
  }
  if (at < size) parts.push({ end: size, isRead: false })
  return parts
}
