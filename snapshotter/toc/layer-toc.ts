/** Bytes of a file's content and where they lie in the layer file. What no extent covers is a hole of zeros. */
export type Extent = {
  /** Offset in the file's content. */
  readonly fileOffset: number
  /** Offset in the layer file, the uncompressed tar. */
  readonly layerOffset: number
  readonly length: number
}

export type EntryKind = 'dir' | 'reg' | 'symlink' | 'hardlink' | 'char' | 'block' | 'fifo'

/**
 * One entry of a layer's tar, parsed and checked, in tar order; duplicates and whiteout names (`.wh.…`) are still there.
 * `path` has no leading or trailing slash, no empty, `.` or `..` part; '' is the root directory.
 * Names are bytes in tar: `path`, `linkTarget` and xattr names hold them as latin1 ("binary") strings, one char a byte.
 */
export type TocEntry = {
  readonly path: string
  readonly kind: EntryKind
  /** Permission bits with set-uid, set-gid and sticky: 0 to 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Seconds since the epoch, may be negative, and nanoseconds 0 to 999,999,999. */
  readonly mtimeSec: number
  readonly mtimeNsec: number
  /** Bytes of a regular file's content, 0 for the rest. */
  readonly size: number
  /** Target of a symlink as written; for a hard link the path (form as `path`) of the entry it names. */
  readonly linkTarget?: string
  readonly devMajor?: number
  readonly devMinor?: number
  /** Extended attributes by full name ('security.capability'), value as bytes. */
  readonly xattrs?: ReadonlyMap<string, Uint8Array>
  /** Content of a regular file, ascending, not overlapping; empty for an empty file. */
  readonly extents?: readonly Extent[]
}

/** A layer's table of contents: all that is needed to mount it without reading it. */
export type LayerToc = {
  readonly entries: readonly TocEntry[]
  /** Bytes of the layer file, the uncompressed tar with its trailing zeros. */
  readonly layerSize: number
}
