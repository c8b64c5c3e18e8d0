import { randomUUID } from 'node:crypto'
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { FsBlockstore } from 'blockstore-fs'
import { NextToLast } from 'blockstore-fs/sharding'
import { base32upper } from 'multiformats/bases/base32'
import { CID } from 'multiformats/cid'
import { z } from 'zod'
import type { BlockMemory } from '../../snapshotter/block-source.ts'
import { CodedError } from '../../snapshotter/errors.ts'
import { verifyBlock, verifyBlockAside } from '../../snapshotter/oci/verify-block.ts'
import { readBlockFile } from './block-file.ts'
import { BLOCK_BYTES_MAX } from './block-provider.ts'
import { isUnixfsCodec, readDagLinks } from './dag-links.ts'
import type { ServedBlocks } from './start-bitswap.ts'

/** Blocks younger than this are kept by `collect`, in ms: an hour, longer than an import goes on before its root is added. */
const COLLECT_AGE_MS = 3_600_000

/** A DAG that is kept, and what it is called. */
export type RepositoryRoot = { readonly cid: CID; readonly name: string; readonly addedAt: Date }

const rootSchema = z.object({ name: z.string(), addedAt: z.iso.datetime() })

/** Which folder and file a block is: for blockstore-fs, which writes them, and for us, who read them. */
const SHARDING = new NextToLast()
const BLOCK_FILE = /^([A-Z2-7]+)\.data$/

/**
 * Blocks on this machine's disk, for those who publish: `blocks/` as blockstore-fs lays it out, and `roots/<cid>` for what is to be kept.
 */
export class BlockRepository implements AsyncDisposable {
  readonly #directory: string
  readonly #blockstore: FsBlockstore

  private constructor(directory: string, blockstore: FsBlockstore) {
    this.#directory = directory
    this.#blockstore = blockstore
  }

  /** Opens the repository in `directory`, which is made if it is not there. */
  static async open(directory: string): Promise<BlockRepository> {
    await mkdir(join(directory, 'roots'), { recursive: true })
    const blockstore = new FsBlockstore(join(directory, 'blocks'), { shardingStrategy: SHARDING })
    await blockstore.open()
    return new BlockRepository(directory, blockstore)
  }

  /** Keeps a block, which is checked first. Safe to call for many at once. */
  async put(cid: CID, block: Uint8Array): Promise<void> {
    if (block.length > BLOCK_BYTES_MAX) {
      throw new CodedError(
        'RESOURCE_EXHAUSTED',
        `block ${cid.toString()} has ${block.length} bytes, a block may have ${BLOCK_BYTES_MAX}`,
        { cid: cid.toString() },
      )
    }
    verifyBlock(cid, block)
    await this.#blockstore.put(cid, block)
  }

  /**
   * The block, checked again after the disk, in `memory` if that is given; undefined if it is not here. Rejects with BlockError DATA_LOSS if the
   * disk changed it.
   */
  async get(cid: CID, memory?: BlockMemory): Promise<Uint8Array | undefined> {
    // blockstore-fs reads pieces of 64 KiB, three times the work, and calls every failure of the disk "not here".
    const { dir, file } = SHARDING.encode(cid)
    const block = await readBlockFile(join(this.#directory, 'blocks', dir, file), memory)
    if (block !== undefined) await verifyBlockAside(cid, block)
    return block
  }

  has(cid: CID): Promise<boolean> {
    return this.#blockstore.has(cid)
  }

  /** The blocks as bitswap wants them. */
  get served(): ServedBlocks {
    const get = (cid: CID): Promise<Uint8Array | undefined> => this.get(cid)
    return {
      has: (cid) => this.#blockstore.has(cid),
      async *get(cid) {
        const block = await get(cid)
        if (block === undefined) throw new NotFoundError(cid)
        yield block
      },
    }
  }

  /** Keeps the DAG under `cid` until `removeRoot`. Its blocks should be here; adding it again changes its name. */
  async addRoot(cid: CID, name: string): Promise<void> {
    if (!isUnixfsCodec(cid)) {
      throw new CodedError(
        'INVALID_ARGUMENT',
        `${cid.toString()} is not UnixFS, so what belongs to it is not known`,
        { cid: cid.toString() },
      )
    }
    const path = this.#rootPath(cid)
    const written = `${path}.${randomUUID()}.tmp`
    await writeFile(written, JSON.stringify({ name, addedAt: new Date().toISOString() }))
    await rename(written, path)
  }

  /** What is kept, oldest first. */
  async roots(): Promise<RepositoryRoot[]> {
    const roots: RepositoryRoot[] = []
    for (const file of await readdir(join(this.#directory, 'roots'))) {
      if (file.endsWith('.tmp')) continue
      const text = await readFile(join(this.#directory, 'roots', file), 'utf8')
      const { name, addedAt } = rootSchema.parse(JSON.parse(text))
      roots.push({ cid: CID.parse(file), name, addedAt: new Date(addedAt) })
    }
    return roots.toSorted((a, b) => a.addedAt.getTime() - b.addedAt.getTime())
  }

  /** Lets the DAG go; its blocks stay until `collect`. Answers whether it was kept. */
  async removeRoot(cid: CID): Promise<boolean> {
    try {
      await rm(this.#rootPath(cid))
      return true
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return false
      throw error
    }
  }

  /** Removes blocks that no root leads to and that have not just been written. `missing` blocks belong to a root and are not here. */
  async collect({
    signal,
    minAgeMs = COLLECT_AGE_MS,
  }: {
    signal: AbortSignal
    minAgeMs?: number
  }): Promise<{ removed: number; removedBytes: number; kept: number; missing: number }> {
    const { reached, missing } = await this.#reachable(signal)
    const oldEnough = Date.now() - minAgeMs
    const result = { removed: 0, removedBytes: 0, kept: 0, missing }
    const blocks = join(this.#directory, 'blocks')
    for (const folder of await readdir(blocks, { withFileTypes: true })) {
      if (!folder.isDirectory()) continue
      signal.throwIfAborted()
      for (const file of await readdir(join(blocks, folder.name))) {
        const key = BLOCK_FILE.exec(file)?.[1]
        const path = join(blocks, folder.name, file)
        const { mtimeMs, size } = await stat(path)
        if (key === undefined || reached.has(key) || mtimeMs > oldEnough) {
          result.kept++
          continue
        }
        await rm(path)
        result.removed++
        result.removedBytes += size
      }
    }
    return result
  }

  /** Keys (multihashes in upper-case base32, as blockstore-fs names its files) of all that roots lead to. */
  async #reachable(signal: AbortSignal): Promise<{ reached: Set<string>; missing: number }> {
    const reached = new Set<string>()
    const queue = (await this.roots()).map(({ cid }) => cid)
    let missing = 0
    for (let cid = queue.pop(); cid !== undefined; cid = queue.pop()) {
      signal.throwIfAborted()
      const key = base32upper.encoder.encode(cid.multihash.bytes)
      if (reached.has(key)) continue
      reached.add(key)
      const block = await this.get(cid)
      if (block === undefined) missing++
      else if (isUnixfsCodec(cid))
        queue.push(...readDagLinks(cid, block).links.map(({ cid }) => cid))
    }
    return { reached, missing }
  }

  #rootPath(cid: CID): string {
    return join(this.#directory, 'roots', cid.toV1().toString())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#blockstore.close()
  }
}

/** Bitswap goes by the name of the error. */
class NotFoundError extends Error {
  constructor(cid: CID) {
    super(`block ${cid.toString()} is not in the repository`)
    this.name = 'NotFoundError'
  }
}
