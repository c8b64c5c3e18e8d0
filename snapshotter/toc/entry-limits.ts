import type { ErrorCode } from '../errors.ts'
import { LayerError } from '../errors.ts'
import type { TocEntry } from './layer-toc.ts'

/** Blocks of a tar, and the unit in which EROFS maps file contents, in bytes. POSIX.1-1988, ustar. */
export const TAR_BLOCK_BYTES = 512

/** Entries of one layer. 4,000,000: the largest public images have under 1,000,000; at about 300 B each it is 1.2 GB. */
export const ENTRIES_MAX = 4_000_000

/** Names, link targets, xattrs and extents of one layer, in bytes. 256 MiB: 4,000,000 entries × 64 B. */
export const TOC_BYTES_MAX: number = 256 * 1024 * 1024

/** A whole path, in bytes. 4,096: PATH_MAX of linux/limits.h, which containerd's own unpack runs into as well. */
export const PATH_BYTES_MAX = 4096

/** One part of a path, in bytes. 255: NAME_MAX of linux/limits.h and EROFS_NAME_LEN. */
export const NAME_BYTES_MAX = 255

/** The name of an extended attribute, in bytes. 255: XATTR_NAME_MAX of linux/limits.h. */
export const XATTR_NAME_BYTES_MAX = 255

/** The value of an extended attribute, in bytes. 65,536: XATTR_SIZE_MAX of linux/limits.h. */
export const XATTR_VALUE_BYTES_MAX = 65_536

/** Data regions of one sparse file. 1,000,000: 24 MB as extents; a 4 TiB file with a hole every 4 MiB. */
export const EXTENTS_MAX = 1_000_000

/** The largest user and group ID. 2^32 − 2: the kernel keeps 2^32 − 1 for "leave as it is". */
export const OWNER_MAX = 4_294_967_294

/** The furthest modification time from 1970, in seconds. 2^40: the year 36,812; ext4 ends in 2446. */
export const TIME_MAX: number = 2 ** 40

/** Where a failure lies: `path` as the archive wrote it (may be empty) and the byte offset of the header. */
export type EntryPlace = { readonly path: string; readonly offset: number }

/** A LayerError about one entry: the sentence names the entry and its offset. */
export function entryError(
  code: ErrorCode,
  place: EntryPlace,
  what: string,
  cause?: unknown,
): LayerError {
  const name = place.path === '' ? 'entry' : `entry ${printable(place.path)}`
  const message = `${name} at byte ${place.offset} of the layer ${what}`
  return new LayerError(code, message, { entry: place.path, offset: place.offset }, cause)
}

/** A NUL, a leading or trailing slash, or a part that is empty, `.` or `..`. */
const UNCLEAN = /\0|(?:^|\/)\.{0,2}(?:\/|$)/

/**
 * A name as tar has it in the form TocEntry wants: no leading or trailing slash, no empty, `.` or `..` part, '' for the
 * root. As containerd does, absolute names are taken from the root of the image and `..` inside it is followed.
 * Throws LayerError INVALID_ARGUMENT for a name that climbs out of the image, holds NUL or is too long for the kernel.
 */
export function cleanPath(name: string, place: EntryPlace, role = 'name'): string {
  // Nearly all are clean already.
  if (name.length <= NAME_BYTES_MAX && !UNCLEAN.test(name)) return name
  if (name.includes('\0')) throw entryError('INVALID_ARGUMENT', place, `has a NUL in its ${role}`)
  if (name.length > PATH_BYTES_MAX) throw tooLong(place, role, name.length, PATH_BYTES_MAX)
  const parts: string[] = []
  for (const part of name.split('/')) {
    if (part === '' || part === '.') continue
    if (part !== '..') {
      if (part.length > NAME_BYTES_MAX) {
        throw tooLong(place, `a part of its ${role}`, part.length, NAME_BYTES_MAX)
      }
      parts.push(part)
    } else if (parts.pop() === undefined) {
      const what = `has a ${role} that climbs out of the image: ${printable(name)}`
      throw entryError('INVALID_ARGUMENT', place, what)
    }
  }
  return parts.join('/')
}

/** Checks an extended attribute against what the kernel takes. Throws LayerError INVALID_ARGUMENT. */
export function checkXattr(name: string, value: Uint8Array, place: EntryPlace): void {
  if (name === '' || name.includes('\0')) {
    throw entryError('INVALID_ARGUMENT', place, `has an extended attribute without a usable name`)
  }
  if (name.length > XATTR_NAME_BYTES_MAX) {
    throw tooLong(place, 'the name of an extended attribute', name.length, XATTR_NAME_BYTES_MAX)
  }
  if (value.length > XATTR_VALUE_BYTES_MAX) {
    throw tooLong(
      place,
      `extended attribute ${printable(name)}`,
      value.length,
      XATTR_VALUE_BYTES_MAX,
    )
  }
}

/** A name for a log line: quoted, cut to 200 characters, control and non-ASCII bytes escaped. */
export function printable(name: string): string {
  const cut = name.length > 200 ? `${name.slice(0, 200)}…` : name
  const escaped = cut.replaceAll(
    /[^\x20-\x7e]|["\\]/g,
    (byte) => `\\x${byte.charCodeAt(0).toString(16).padStart(2, '0')}`,
  )
  return `"${escaped}"`
}

function tooLong(place: EntryPlace, subject: string, length: number, limit: number): LayerError {
  const what = `is refused: ${subject} is ${length} bytes long, the limit is ${limit}`
  return entryError('INVALID_ARGUMENT', place, what)
}

const TOC_LIMITS = { entries: ENTRIES_MAX, bytes: TOC_BYTES_MAX }

/** Keeps what a table of contents takes in memory within `ENTRIES_MAX` and `TOC_BYTES_MAX`, however long its source is. */
export class TocBudget {
  readonly #limits: { readonly entries: number; readonly bytes: number }
  #entries = 0
  #bytes = 0

  constructor(limits: { readonly entries: number; readonly bytes: number } = TOC_LIMITS) {
    this.#limits = limits
  }

  /** Counts an entry. Throws LayerError RESOURCE_EXHAUSTED, naming it, when the budget is spent. */
  spend(entry: TocEntry, offset: number): void {
    this.#entries++
    this.#bytes += entry.path.length + (entry.linkTarget?.length ?? 0)
    this.#bytes += 24 * (entry.extents?.length ?? 0)
    for (const [name, value] of entry.xattrs ?? []) this.#bytes += name.length + value.length
    const place = { path: entry.path, offset }
    if (this.#entries > this.#limits.entries) {
      throw entryError(
        'RESOURCE_EXHAUSTED',
        place,
        `is one more than the limit of ${this.#limits.entries}`,
      )
    }
    if (this.#bytes > this.#limits.bytes) {
      const what = `brings names and attributes to ${this.#bytes} bytes, the limit is ${this.#limits.bytes}`
      throw entryError('RESOURCE_EXHAUSTED', place, what)
    }
  }
}
