import { createHash } from 'node:crypto'
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
} from 'node:fs'
import { listXattrs } from './list-xattrs.ts'

/** All that can be seen of one name in a mounted tree. */
export type SeenEntry = {
  /** Type and permission bits, octal: '100644'. */
  readonly mode: string
  readonly owner: string
  readonly size: number
  /** Nanoseconds since the epoch, as text so that a difference can be printed. */
  readonly mtime: string
  /** Names of the inode; not given for directories, where file systems count differently. */
  readonly links?: number
  /** All paths that lead to the inode, sorted, if there is more than one. */
  readonly linkedWith?: readonly string[]
  readonly device?: string
  readonly target?: string
  /** Values in hexadecimal, by name, sorted. */
  readonly xattrs: Readonly<Record<string, string>>
  /** SHA-256 of a regular file's content. */
  readonly content?: string
}

/**
 * Everything in the tree at `directory`, by path below it (latin1, one char a byte; '' is the root itself).
 * Reads content up to `contentBytesMax` per file.
 */
export function readTree(
  directory: string,
  { contentBytesMax = Number.MAX_SAFE_INTEGER }: { contentBytesMax?: number } = {},
): Map<string, SeenEntry> {
  const seen = new Map<string, SeenEntry>()
  const byInode = new Map<string, string[]>()
  const pending = ['']
  for (let path = pending.pop(); path !== undefined; path = pending.pop()) {
    const full = Buffer.concat([Buffer.from(`${directory}/`), Buffer.from(path, 'latin1')])
    const stat = lstatSync(full, { bigint: true, throwIfNoEntry: false })
    // Overlayfs lists the whiteouts of a directory that only one layer has, though they cannot be opened.
    if (stat === undefined) continue
    const special = stat.isCharacterDevice() || stat.isBlockDevice()
    const inode = `${stat.dev}:${stat.ino}` // Under overlayfs each layer counts for itself.
    if (!stat.isDirectory()) byInode.set(inode, [...(byInode.get(inode) ?? []), path])
    seen.set(path, {
      mode: stat.mode.toString(8),
      owner: `${stat.uid}:${stat.gid}`,
      size: stat.isDirectory() ? 0 : Number(stat.size),
      mtime: stat.mtimeNs.toString(),
      ...(stat.isDirectory() ? {} : { links: Number(stat.nlink) }),
      ...(special ? { device: `${major(stat.rdev)}:${minor(stat.rdev)}` } : {}),
      ...(stat.isSymbolicLink()
        ? { target: readlinkSync(full, { encoding: 'buffer' }).toString('latin1') }
        : {}),
      xattrs: listXattrs(full),
      ...(stat.isFile() ? { content: contentHash(full, contentBytesMax) } : {}),
    })
    if (!stat.isDirectory()) continue
    for (const name of readdirSync(full, { encoding: 'buffer' })) {
      pending.push(path === '' ? name.toString('latin1') : `${path}/${name.toString('latin1')}`)
    }
  }
  for (const paths of byInode.values()) {
    if (paths.length < 2) continue
    for (const path of paths) {
      const entry = seen.get(path)
      if (entry !== undefined) seen.set(path, { ...entry, linkedWith: paths.toSorted() })
    }
  }
  return seen
}

/** The differences between two trees, one line each; empty if they are equal. */
export function treeDifferences(
  actual: ReadonlyMap<string, SeenEntry>,
  expected: ReadonlyMap<string, SeenEntry>,
): string[] {
  const differences: string[] = []
  for (const path of new Set([...expected.keys(), ...actual.keys()])) {
    const [is, should] = [JSON.stringify(actual.get(path)), JSON.stringify(expected.get(path))]
    if (is !== should) differences.push(`${JSON.stringify(path)}: ${is} should be ${should}`)
  }
  return differences
}

function contentHash(path: Buffer, bytesMax: number): string {
  const hash = createHash('sha256')
  const buffer = Buffer.alloc(1024 * 1024)
  const file = openSync(path, constants.O_RDONLY)
  try {
    let left = Math.min(fstatSync(file).size, bytesMax)
    while (left > 0) {
      const length = readSync(file, buffer, 0, Math.min(left, buffer.length), null)
      if (length === 0) throw new Error(`${path.toString()} ends ${left} bytes early`)
      hash.update(buffer.subarray(0, length))
      left -= length
    }
  } finally {
    closeSync(file)
  }
  return hash.digest('hex')
}

function major(device: bigint): number {
  return Number((device >> 8n) & 0xfffn)
}

function minor(device: bigint): number {
  return Number((device & 0xffn) | ((device >> 12n) & 0xfff00n))
}
