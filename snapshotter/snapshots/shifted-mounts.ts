import { closeSync } from 'node:fs'
import { mkdir, readdir, rmdir } from 'node:fs/promises'
import { join } from 'node:path'
import { KernelError } from '../errors.ts'
import {
  copyMount,
  MNT_DETACH,
  moveMount,
  shiftMount,
  UMOUNT_NOFOLLOW,
  umount,
} from '../kernel/libc.ts'
import { listMounts } from '../kernel/mountinfo.ts'
import { openUserNamespace } from '../kernel/user-namespace.ts'
import { orUndefinedIfGone } from '../or-undefined-if-gone.ts'
import type { IdMapping } from './id-mapping.ts'

/**
 * What snapshots of containers in user namespaces stand on: the same directories, mounted once more with shifted owners (mount_setattr(2),
 * MOUNT_ATTR_IDMAP), for each snapshot, since each pod has ids of its own. Nothing is copied, and no byte is read. containerd would
 * do it by itself, but leaves out what is mounted below the directory that all have in common, which is all of ours.
 */
export class ShiftedMounts {
  readonly #root: string

  private constructor(root: string) {
    this.#root = root
  }

  /** Makes `root` if it is missing. */
  static async open(root: string): Promise<ShiftedMounts> {
    await mkdir(root, { recursive: true, mode: 0o700 })
    return new ShiftedMounts(root)
  }

  /** Where the directories of snapshot `id` are with shifted owners, in the same order. Rejects with KernelError. */
  async of(id: number, lowerDirs: readonly string[], ids: IdMapping): Promise<string[]> {
    const folder = this.#folder(id)
    const mounted = new Set(listMounts(folder).map(({ target }) => target))
    const targets = lowerDirs.map((_, at) => join(folder, String(at)))
    const missing = targets.flatMap((target, at) => {
      const source = lowerDirs[at]
      return mounted.has(target) || source === undefined ? [] : [{ source, target }]
    })
    if (missing.length === 0) return targets
    await using namespace = await openUserNamespace(ids)
    for (const { source, target } of missing) {
      await mkdir(target, { recursive: true })
      const copy = copyMount(source)
      try {
        shift(copy, source, namespace.fd)
        await moveMount(copy, target)
      } finally {
        closeSync(copy)
      }
    }
    return targets
  }

  /** Takes those of a snapshot away; containers that run keep theirs. Without any it does nothing. */
  async release(id: number): Promise<void> {
    const folder = this.#folder(id)
    if ((await names(folder)).length === 0) return await rmdir(folder).catch(() => undefined)
    for (const { target } of listMounts(folder).toReversed()) {
      umount(target, MNT_DETACH | UMOUNT_NOFOLLOW)
    }
    // Never what is in a directory: something might still be mounted there.
    for (const name of await names(folder)) await rmdir(join(folder, name))
    await rmdir(folder).catch(() => undefined)
  }

  /** Snapshots that have some. */
  async ids(): Promise<number[]> {
    return (await names(this.#root)).map(Number).filter(Number.isSafeInteger)
  }

  #folder(id: number): string {
    return join(this.#root, String(id))
  }
}

function shift(copy: number, source: string, userNamespace: number): void {
  try {
    shiftMount(copy, userNamespace)
  } catch (error) {
    if (!(error instanceof KernelError) || error.facts['errno'] !== 'EINVAL') throw error
    throw new KernelError(
      'FAILED_PRECONDITION',
      `owners in ${source} cannot be shifted: its file system or this kernel cannot (Linux 5.19 and ext4, xfs or btrfs can)`,
      { source },
      error,
    )
  }
}

async function names(folder: string): Promise<readonly string[]> {
  return (await orUndefinedIfGone(readdir(folder))) ?? []
}
