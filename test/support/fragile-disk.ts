import { execFileSync } from 'node:child_process'
import { mkdirSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** Room for a catalog, two small layers and ext4's own 4 MiB. */
const DISK_BYTES = 64 * 1024 ** 2

/**
 * A disk of its own, on which ext4 brings nothing by itself for as long as a test runs. What somebody waited for is there after a power
 * cut, and of the rest what the kernel happened to have written.
 */
export class FragileDisk implements Disposable {
  /** Where it is mounted. */
  readonly path: string
  readonly #imagePath: string
  #cuts = 0

  private constructor(path: string, imagePath: string) {
    this.path = path
    this.#imagePath = imagePath
  }

  /** Makes one, as a file in `folder`, and mounts it at `path`, which is made too. */
  static mount(path: string, folder: string): FragileDisk {
    mkdirSync(path, { recursive: true })
    const disk = new FragileDisk(path, join(folder, 'fragile-disk'))
    writeFileSync(disk.#imagePath, '')
    truncateSync(disk.#imagePath, DISK_BYTES)
    execFileSync('mkfs.ext4', ['-q', disk.#imagePath])
    disk.#mount(disk.#imagePath)
    return disk
  }

  /** What the disk has at this moment. Give it to `replace`. */
  cutPower(): string {
    const copy = `${this.#imagePath}-${this.#cuts++}`
    // What is behind the loop device: all that ext4 has sent to it, and nothing that it still has in memory.
    execFileSync('cp', ['--sparse=always', this.#imagePath, copy])
    return copy
  }

  /** Mounts what a disk had in its place. Nothing may be open on it. */
  replace(imagePath: string): void {
    execFileSync('umount', [this.path])
    this.#mount(imagePath)
  }

  [Symbol.dispose](): void {
    execFileSync('umount', [this.path])
  }

  #mount(imagePath: string): void {
    // Its journal is committed every 5 s otherwise, and written data with it.
    execFileSync('mount', ['-o', 'loop,commit=600', imagePath, this.path])
  }
}
