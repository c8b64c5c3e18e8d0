import { exporter, type ReadableStorage, walkPath } from 'ipfs-unixfs-exporter'
import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { BlockError, CodedError, ImageError } from '../errors.ts'
import { readBlock } from './read-block.ts'
import {
  BLOCK_BYTES_MAX,
  checkUnixfsCodec,
  DAG_PB,
  decodeUnixfsNode,
  type UnixfsNode,
} from './unixfs-node.ts'

/** Most directories on the way to a file. An image needs two; 32 leaves room for one kept deep in a tree. */
export const PATH_PARTS_MAX = 32

/** Most blocks read to look a path up: 32 directories, each up to 8 shards deep (256-way, so 2^64 names). */
export const PATH_BLOCKS_MAX = 256

/** Most blocks read to list a directory: at about 200 names a shard and more, over 800,000 names. */
export const LISTING_BLOCKS_MAX = 4096

/** Most names that a listing answers: an image directory holds a few hundred. */
export const LISTING_NAMES_MAX = 100_000

/** What a path leads to. */
export type UnixfsEntry = { readonly kind: 'file' | 'directory' | 'symlink'; readonly cid: CID }

/**
 * Follows names from the UnixFS directory `root`, sharded ones too. Rejects with ImageError NOT_FOUND saying which name is missing
 * where, FAILED_PRECONDITION if a codec on the way is not UnixFS, RESOURCE_EXHAUSTED over a limit, and as BlockSource.get.
 */
export async function resolveUnixfsPath(
  root: CID,
  names: readonly string[],
  blocks: BlockSource,
  request: BlockRequest,
): Promise<UnixfsEntry> {
  if (names.length > PATH_PARTS_MAX) {
    throw new ImageError(
      'RESOURCE_EXHAUSTED',
      `a path of ${names.length} names is too long, ${PATH_PARTS_MAX} are followed`,
      { root: root.toString() },
    )
  }
  const reader = new DirectoryBlocks(blocks, request, PATH_BLOCKS_MAX)
  let entry = await entryAt(root, reader)
  for (const [depth, name] of names.entries()) {
    const here = `/ipfs/${[root.toString(), ...names.slice(0, depth)].join('/')}`
    if (entry.kind !== 'directory') {
      throw new ImageError('NOT_FOUND', `${here} is a ${entry.kind}, so it has no ${name} in it`, {
        root: root.toString(),
      })
    }
    const child = await childOf(entry.cid, name, reader)
    if (child === undefined) {
      throw new ImageError('NOT_FOUND', `${here} has no ${name}`, { root: root.toString(), name })
    }
    entry = await entryAt(child, reader)
  }
  return entry
}

/** Names and CIDs in a directory, as they come. Rejects as `resolveUnixfsPath`. */
export async function listUnixfsDirectory(
  directory: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<{ name: string; cid: CID }[]> {
  const reader = new DirectoryBlocks(blocks, request, LISTING_BLOCKS_MAX)
  const entries: { name: string; cid: CID }[] = []
  await translated(directory, async () => {
    const opened = await exporter(directory, reader, { signal: request.signal })
    if (opened.type !== 'directory') return
    for await (const { name, cid } of opened.entries({ signal: request.signal })) {
      if (entries.length >= LISTING_NAMES_MAX) {
        throw new ImageError(
          'RESOURCE_EXHAUSTED',
          `directory ${directory.toString()} has more than ${LISTING_NAMES_MAX} names`,
          { cid: directory.toString() },
        )
      }
      entries.push({ name, cid })
    }
  })
  return entries
}

async function entryAt(cid: CID, reader: DirectoryBlocks): Promise<UnixfsEntry> {
  checkUnixfsCodec(cid)
  if (cid.code !== DAG_PB) return { kind: 'file', cid }
  const { kind } = await reader.node(cid)
  return { kind: kind === 'shard' ? 'directory' : kind, cid }
}

async function childOf(
  directory: CID,
  name: string,
  reader: DirectoryBlocks,
): Promise<CID | undefined> {
  // The exporter splits at slashes, and a backslash in front of one stops it from doing so.
  if (name === '' || /[/\\]/.test(name)) return undefined
  let child: CID | undefined
  await translated(directory, async () => {
    try {
      const steps = walkPath(`${directory.toString()}/${name}`, reader, { signal: reader.signal })
      for await (const step of steps) if (step.roots.length > 1) child = step.cid
    } catch (error) {
      if (error instanceof Error && error.name === 'NotFoundError') return
      throw error
    }
  })
  return child
}

/** Blocks of one look-up, each read once and checked before the exporter sees it, and not too many of them. */
class DirectoryBlocks implements ReadableStorage {
  readonly #source: BlockSource
  readonly #request: BlockRequest
  readonly #blocksMax: number
  readonly #blocks = new Map<string, Promise<{ block: Uint8Array; node?: UnixfsNode }>>()

  constructor(source: BlockSource, request: BlockRequest, blocksMax: number) {
    this.#source = source
    this.#request = request
    this.#blocksMax = blocksMax
  }

  get signal(): AbortSignal {
    return this.#request.signal
  }

  async *get(cid: CID): AsyncGenerator<Uint8Array> {
    yield (await this.#read(cid)).block
  }

  async node(cid: CID): Promise<UnixfsNode> {
    const { block, node } = await this.#read(cid)
    return node ?? decodeUnixfsNode(cid, block)
  }

  #read(cid: CID): Promise<{ block: Uint8Array; node?: UnixfsNode }> {
    const key = cid.toString()
    const known = this.#blocks.get(key)
    if (known !== undefined) return known
    if (this.#blocks.size >= this.#blocksMax) {
      return Promise.reject(
        new ImageError(
          'RESOURCE_EXHAUSTED',
          `directory ${key}: ${this.#blocksMax} blocks were read and the look-up is not at its end`,
          { cid: key, blocksMax: this.#blocksMax, blockBytesMax: BLOCK_BYTES_MAX },
        ),
      )
    }
    const read = this.#readOnce(cid)
    this.#blocks.set(key, read)
    return read
  }

  async #readOnce(cid: CID): Promise<{ block: Uint8Array; node?: UnixfsNode }> {
    const block = await readBlock(this.#source, cid, this.#request)
    return cid.code === DAG_PB ? { block, node: decodeUnixfsNode(cid, block) } : { block }
  }
}

async function translated(cid: CID, work: () => Promise<void>): Promise<void> {
  try {
    await work()
  } catch (error) {
    if (error instanceof CodedError) throw error
    throw new BlockError(
      'DATA_LOSS',
      `directory ${cid.toString()} cannot be read: ${error instanceof Error ? error.message : String(error)}`,
      { cid: cid.toString() },
      error,
    )
  }
}
