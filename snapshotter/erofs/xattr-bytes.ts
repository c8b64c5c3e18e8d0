/** Name prefixes that EROFS has an index for: EROFS_XATTR_INDEX_* of fs/erofs/erofs_fs.h. Others cannot be stored. */
const prefixes: readonly (readonly [prefix: string, index: number])[] = [
  ['user.', 1],
  ['trusted.', 4],
  ['security.', 6],
]

/** Attributes that are a prefix with nothing behind it. */
const wholeNames: ReadonlyMap<string, number> = new Map([
  ['system.posix_acl_access', 2],
  ['system.posix_acl_default', 3],
])

const HEADER_BYTES = 12
const ENTRY_HEADER_BYTES = 4
const NAME_BYTES_MAX = 0xff
const VALUE_BYTES_MAX = 0xffff

/** Bytes of all attributes of an inode: i_xattr_icount has 16 bits, of which one unit stands for the header, rest words. */
const XATTRS_BYTES_MAX = HEADER_BYTES + 4 * (0xffff - 1)

export type XattrBytes = {
  /** What follows the inode; empty if there is nothing to store. A multiple of 4 bytes. */
  readonly bytes: Uint8Array
  /** How many attributes EROFS cannot hold: of another prefix, over 64 KiB, or over 256 KiB together. */
  readonly dropped: number
}

const none: XattrBytes = { bytes: new Uint8Array(0), dropped: 0 }

/**
 * Extended attributes as they follow an inode, sorted by name so that equal sets give equal bytes.
 * What cannot be held is left out and counted, as containerd goes on when a file system refuses an attribute.
 */
export function xattrBytes(xattrs: ReadonlyMap<string, Uint8Array>): XattrBytes {
  if (xattrs.size === 0) return none
  const parts: Uint8Array[] = []
  let length = HEADER_BYTES
  let dropped = 0
  for (const [name, value] of [...xattrs].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    const entry = entryBytes(name, value)
    if (entry === undefined || length + entry.length > XATTRS_BYTES_MAX) {
      dropped++
      continue
    }
    parts.push(entry)
    length += entry.length
  }
  if (parts.length === 0) return { bytes: none.bytes, dropped }
  // The header stays zero: no name filter, no shared attributes.
  return { bytes: Buffer.concat([new Uint8Array(HEADER_BYTES), ...parts]), dropped }
}

/** The value of i_xattr_icount that stands for `length` bytes of attributes. */
export function xattrCount(length: number): number {
  return length === 0 ? 0 : (length - HEADER_BYTES) / 4 + 1
}

function entryBytes(name: string, value: Uint8Array): Uint8Array | undefined {
  const named = indexed(name)
  if (named === undefined || named.suffix.length > NAME_BYTES_MAX) return undefined
  if (value.length > VALUE_BYTES_MAX) return undefined
  const used = ENTRY_HEADER_BYTES + named.suffix.length + value.length
  const bytes = Buffer.alloc(Math.ceil(used / 4) * 4)
  bytes.writeUInt8(named.suffix.length, 0)
  bytes.writeUInt8(named.index, 1)
  bytes.writeUInt16LE(value.length, 2)
  bytes.write(named.suffix, ENTRY_HEADER_BYTES, 'latin1')
  bytes.set(value, ENTRY_HEADER_BYTES + named.suffix.length)
  return bytes
}

function indexed(name: string): { index: number; suffix: string } | undefined {
  const whole = wholeNames.get(name)
  if (whole !== undefined) return { index: whole, suffix: '' }
  for (const [prefix, index] of prefixes) {
    if (name.startsWith(prefix) && name.length > prefix.length) {
      return { index, suffix: name.slice(prefix.length) }
    }
  }
  return undefined
}
