import { closeSync } from 'node:fs'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { mountFuse } from '../../snapshotter/fuse/mount-fuse.ts'
import { MNT_DETACH, umount } from '../../snapshotter/kernel/libc.ts'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import type { Log } from '../../snapshotter/log.ts'

const MNT_FORCE = 1 // linux/fs.h; to FUSE: end the connection.

/** A FUSE mount in a directory of its own, with no server yet: what `mountFuse` made, and its undoing. */
export class FuseMount implements AsyncDisposable {
  /** A scratch directory on a disk, for the test's own files. */
  readonly dir: string
  readonly mountpoint: string
  readonly deviceFd: number
  #mounted = true

  private constructor(dir: string, mountpoint: string, deviceFd: number) {
    this.dir = dir
    this.mountpoint = mountpoint
    this.deviceFd = deviceFd
  }

  static async create(): Promise<FuseMount> {
    const dir = await mkdtemp('/tmp/fuse-test-')
    const mountpoint = join(dir, 'mount')
    await mkdir(mountpoint)
    const mount = new FuseMount(dir, mountpoint, mountFuse(mountpoint))
    onTestFinished(() => mount.#abort())
    return mount
  }

  /** The mounted file `name`. */
  path(name: string): string {
    return join(this.mountpoint, name)
  }

  unmount(): void {
    if (this.#mounted) umount(this.mountpoint, MNT_DETACH)
    this.#mounted = false
  }

  /** Frees whoever hangs in a read, if the test ended without an unmount: a reader stuck there stops every ps(1) too. */
  #abort(): void {
    for (const { target } of listMounts(this.dir).toReversed()) {
      umount(target, MNT_FORCE | MNT_DETACH)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.unmount()
    closeSync(this.deviceFd)
    await rm(this.dir, { recursive: true, force: true })
  }
}

/** A log that keeps its sentences for a test to read. */
export function listeningLog(): Log & {
  readonly sentences: string[]
  /** The next sentence with this in it, from now on. */
  said(text: string): Promise<string>
} {
  const sentences: string[] = []
  const waiting = new Set<(sentence: string) => void>()
  const write = (_facts: object, sentence: string): void => {
    sentences.push(sentence)
    for (const tell of waiting) tell(sentence)
  }
  const said = (text: string): Promise<string> => {
    const { promise, resolve } = Promise.withResolvers<string>()
    const tell = (sentence: string): void => {
      if (!sentence.includes(text)) return
      waiting.delete(tell)
      resolve(sentence)
    }
    waiting.add(tell)
    return promise
  }
  return { sentences, said, debug: write, info: write, warn: write, error: write }
}
