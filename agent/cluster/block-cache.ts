import { mkdir, readdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { CID } from 'multiformats/cid'
import { BlockError } from '../../snapshotter/errors.ts'
import type { Log } from '../../snapshotter/log.ts'
import { verifyBlockAside } from '../../snapshotter/oci/verify-block.ts'
import { readBlockFile } from '../ipfs/block-file.ts'

/** Blocks kept, whatever their size. 65,536 files: some 20 MB of this process to know them all. */
const BLOCKS_MAX = 65_536

/** Bytes on their way to the disk; beyond it blocks are not kept, for a disk that is slower than the network. 32 MiB: 64 blocks of 512 KiB. */
const WRITING_BYTES_MAX: number = 32 * 1024 ** 2

/** Names of our files: a CIDv1 in base32. */
const BLOCK_NAME = /^b[a-z2-7]{20,200}$/

type Collaborators = {
  readonly log: Pick<Log, 'warn'>
  /** A block on the disk was not what its CID says. It is gone now. */
  readonly onDamaged?: (cid: CID) => void
}

/**
 * The blocks that came last, in a directory of its own, a file each by its CID; the oldest go first. What the disk did to them is found
 * by their CID when they are read, so nothing is synced.
 */
export class BlockCache implements AsyncDisposable {
  readonly #directory: string
  readonly #bytesMax: number
  readonly #log: Pick<Log, 'warn'>
  readonly #onDamaged: (cid: CID) => void
  /** Sizes by CID, oldest first. */
  readonly #sizes = new Map<string, number>()
  readonly #writing = new Map<string, Promise<void>>()
  #writingBytes = 0
  #bytes = 0
  #isFailing = false

  private constructor(directory: string, bytesMax: number, { log, onDamaged }: Collaborators) {
    this.#directory = directory
    this.#bytesMax = bytesMax
    this.#log = log
    this.#onDamaged = onDamaged ?? (() => undefined)
  }

  /** Finds what is in `directory`, which is made if it is not there, and removes what is too much or not a block. */
  static async open(
    directory: string,
    bytesMax: number,
    collaborators: Collaborators,
  ): Promise<BlockCache> {
    const cache = new BlockCache(directory, bytesMax, collaborators)
    await mkdir(directory, { recursive: true, mode: 0o700 })
    const found: { name: string; bytes: number; at: number }[] = []
    for (const name of await readdir(directory)) {
      const path = join(directory, name)
      const { size, mtimeMs } = await stat(path)
      if (BLOCK_NAME.test(name)) found.push({ name, bytes: size, at: mtimeMs })
      else await rm(path, { recursive: true })
    }
    for (const { name, bytes } of found.toSorted((a, b) => a.at - b.at)) cache.#add(name, bytes)
    await cache.#evict()
    return cache
  }

  /** What the blocks take on the disk. */
  get bytes(): number {
    return this.#bytes
  }

  /** How long the block is, if it is here. */
  sizeOf(cid: CID): number | undefined {
    return this.#sizes.get(nameOf(cid))
  }

  /** The block, checked; undefined if it is not here, or no longer what it was. */
  async get(cid: CID): Promise<Uint8Array | undefined> {
    const name = nameOf(cid)
    if (!this.#sizes.has(name)) return undefined
    try {
      const block = await readBlockFile(join(this.#directory, name))
      if (block !== undefined) {
        await verifyBlockAside(cid, block)
        return block
      }
    } catch (error) {
      // The disk cannot read it, or changed it.
      if (error instanceof BlockError) this.#onDamaged(cid)
    }
    await this.#remove(name)
    return undefined
  }

  /** Keeps a block, unless the disk is too slow for it. `block` may not change until this resolves, which it always does. */
  async put(cid: CID, block: Uint8Array): Promise<void> {
    const name = nameOf(cid)
    const isTooMuch = this.#writingBytes + block.length > WRITING_BYTES_MAX
    if (this.#sizes.has(name) || block.length > this.#bytesMax || isTooMuch) return
    const writing = this.#writing.get(name) ?? this.#write(name, block)
    this.#writing.set(name, writing)
    await writing
  }

  /** Waits for what is being written. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#writing.values())
  }

  async #write(name: string, block: Uint8Array): Promise<void> {
    const path = join(this.#directory, name)
    this.#writingBytes += block.length
    try {
      await writeFile(`${path}.tmp`, block)
      await rename(`${path}.tmp`, path)
      this.#add(name, block.length)
      this.#isFailing = false
      await this.#evict()
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      if (!this.#isFailing) {
        this.#log.warn({ reason }, `blocks cannot be kept for other nodes: ${reason}`)
      }
      this.#isFailing = true
      await rm(`${path}.tmp`, { force: true }).catch(() => undefined)
    } finally {
      this.#writingBytes -= block.length
      this.#writing.delete(name)
    }
  }

  #add(name: string, bytes: number): void {
    this.#sizes.set(name, bytes)
    this.#bytes += bytes
  }

  async #evict(): Promise<void> {
    for (const [oldest] of this.#sizes) {
      if (this.#bytes <= this.#bytesMax && this.#sizes.size <= BLOCKS_MAX) return
      await this.#remove(oldest)
    }
  }

  async #remove(name: string): Promise<void> {
    const bytes = this.#sizes.get(name)
    if (bytes === undefined) return
    this.#sizes.delete(name)
    this.#bytes -= bytes
    await rm(join(this.#directory, name), { force: true }).catch(() => undefined)
  }
}

function nameOf(cid: CID): string {
  return cid.toV1().toString()
}
