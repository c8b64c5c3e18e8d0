import { chmod, chown, mkdir, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { SnapshotError } from '../errors.ts'
import type { IdMapping } from './id-mapping.ts'

/** In an overlay option these end a path or its escape. */
const NOT_IN_OVERLAY_OPTIONS = /[:,\\]/

/**
 * The directories of snapshots, `<id>/fs` and for active ones `<id>/work`, as overlayfs wants them. The names are short
 * because up to 128 of them share the 4,096 bytes of one mount's options.
 */
export class SnapshotDirectories {
  readonly #root: string

  private constructor(root: string) {
    this.#root = root
  }

  /** Makes `root` if it is missing. Rejects with SnapshotError INVALID_ARGUMENT if it cannot stand in overlay's options. */
  static async open(root: string): Promise<SnapshotDirectories> {
    if (NOT_IN_OVERLAY_OPTIONS.test(root)) {
      throw new SnapshotError(
        'INVALID_ARGUMENT',
        `${root}: overlayfs takes no directory with a colon, comma or backslash in its path`,
      )
    }
    await mkdir(root, { recursive: true, mode: 0o700 })
    return new SnapshotDirectories(root)
  }

  /** The content of a snapshot: overlay's upper or lower directory. */
  content(id: number): string {
    return join(this.#root, String(id), 'fs')
  }

  /** Overlay's scratch directory for an active snapshot. */
  work(id: number): string {
    return join(this.#root, String(id), 'work')
  }

  /** Makes those of a new snapshot, empty; what is there already stays. */
  async create(id: number, kind: 'active' | 'view'): Promise<void> {
    await mkdir(this.content(id), { recursive: true })
    // Not by mkdir's mode, from which the process's umask is taken away.
    await chmod(this.content(id), 0o755)
    if (kind === 'active') await mkdir(this.work(id), { recursive: true, mode: 0o711 })
  }

  /** Gives the content of `id` the owner and mode of `parent`, shifted by `ids`: overlay shows the upper directory's as the root's. */
  async adoptRoot(id: number, parent: string, ids?: IdMapping): Promise<void> {
    const { mode, ...inside } = await stat(parent)
    const { uid, gid } = ids?.toHost(inside) ?? inside
    await chown(this.content(id), uid, gid)
    await chmod(this.content(id), mode & 0o7777)
  }

  async remove(name: number | string): Promise<void> {
    await rm(join(this.#root, String(name)), { recursive: true, force: true })
  }

  /** The names of all there are. */
  async names(): Promise<string[]> {
    return await readdir(this.#root)
  }
}
