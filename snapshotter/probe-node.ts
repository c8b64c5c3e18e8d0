import { stat, statfs } from 'node:fs/promises'
import { dirname } from 'node:path'
import { type KernelReport, probeKernel } from './erofs/probe-kernel.ts'

export type { KernelReport }
export { probeKernel }

/** Where the layers lie, as statfs(2) tells it. */
export type Disk = {
  /** The folder itself, or the nearest one above it that exists. */
  readonly folder: string
  /** Name of the file system's type, or its number in hexadecimal. */
  readonly type: string
  /** Whether EROFS mounts images from it: `false` only where that is known not to be so. */
  readonly backsErofs: boolean
  /** Bytes that are free but for what is kept for root, and inodes; -1 where the file system does not count inodes. */
  readonly freeBytes: number
  readonly freeInodes: number
}

/** f_type of statfs(2) by name (linux/magic.h). EROFS needs files with a page cache and a block map of their own. */
const TYPES: ReadonlyMap<number, { readonly name: string; readonly backsErofs: boolean }> = new Map(
  [
    [0xef53, { name: 'ext4', backsErofs: true }],
    [0x58465342, { name: 'xfs', backsErofs: true }],
    [0x9123683e, { name: 'btrfs', backsErofs: true }],
    [0x01021994, { name: 'tmpfs', backsErofs: false }],
    [0x794c7630, { name: 'overlay', backsErofs: false }],
    [0x6969, { name: 'nfs', backsErofs: false }],
    [0x65735546, { name: 'fuse', backsErofs: false }],
  ],
)

/** The disk that `folder` lies on, or will lie on. Rejects as the file system does. */
export async function diskOf(folder: string): Promise<Disk> {
  const existing = await nearestExisting(folder)
  const { type, bsize, bavail, files, ffree } = await statfs(existing)
  const known = TYPES.get(type)
  return {
    folder: existing,
    type: known?.name ?? `0x${type.toString(16)}`,
    backsErofs: known?.backsErofs ?? true,
    freeBytes: bsize * bavail,
    freeInodes: files === 0 ? -1 : ffree,
  }
}

async function nearestExisting(folder: string): Promise<string> {
  for (let at = folder; ; at = dirname(at)) {
    try {
      if ((await stat(at)).isDirectory()) return at
    } catch (error) {
      const isMissing = error instanceof Error && 'code' in error && error.code === 'ENOENT'
      if (!isMissing) throw error
    }
    if (at === dirname(at)) return at
  }
}
