import { createHash } from 'node:crypto'
import { CID } from 'multiformats/cid'
import type { LayerBlob } from '../blobs/layer-blob.ts'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import type { ByteRange } from '../byte-range.ts'
import { BlockError, ImageError } from '../errors.ts'
import { boundedParallel } from './bounded-parallel.ts'
import { readBlock } from './read-block.ts'
import {
  BLOCK_BYTES_MAX,
  checkUnixfsCodec,
  DAG_PB,
  decodeUnixfsNode,
  type UnixfsNode,
} from './unixfs-node.ts'

/** Most leaves of a file. 2^18: 64 GiB in leaves of 256 KiB, and 12 MB of memory while one is open. */
export const LEAVES_MAX: number = 1 << 18

/** Most inner nodes of a file. 2^14: 2^18 leaves under nodes of 16 and more; kubo writes 174 and more to a node. */
export const INNER_NODES_MAX: number = 1 << 14

/** Deepest tree. 2^18 leaves, two to a node, are 18 deep; trickle layouts of that size stay under 32. */
export const TREE_DEPTH_MAX = 32

/** Inner nodes asked for at once while a file is opened. 16: at 50 ms a node and 1,000 leaves a node, 5 million leaves a second. */
const OPEN_CONCURRENCY = 16

/** Leaves asked for at once by one read. 8: the knee of throughput over HTTP, and 16 MiB of the largest blocks. */
const READ_CONCURRENCY = 8

/** Marks the persisted form, with its version. */
const MAGIC = Buffer.from('UFL1')
const CHECKSUM_BYTES = 32

type Leaf = { readonly cid: CID; readonly size: number }

/** A file in UnixFS, as its list of leaves: any part can be read without the inner nodes, and the list kept across restarts. */
export class UnixfsFile implements LayerBlob {
  readonly cid: CID
  /** Bytes of the file. */
  readonly size: number
  /** Where leaves start in the file, ascending, with `size` as last element: leaf i is [leafStarts[i], leafStarts[i + 1]). */
  readonly leafStarts: Float64Array
  /** CIDs one after another, 36 bytes each as a rule: a tenth of what as many CID objects take. */
  readonly #cidBytes: Uint8Array
  readonly #cidStarts: Uint32Array
  readonly #blocks: BlockSource
  /** The block of a file that is one raw block: it was read to learn its size, and some peers do not send a block twice. */
  #onlyBlock: Uint8Array | undefined

  private constructor(
    cid: CID,
    blocks: BlockSource,
    leafStarts: Float64Array,
    cidBytes: Uint8Array,
    cidStarts: Uint32Array,
  ) {
    this.cid = cid
    this.#blocks = blocks
    this.leafStarts = leafStarts
    this.size = leafStarts[leafStarts.length - 1] ?? 0
    this.#cidBytes = cidBytes
    this.#cidStarts = cidStarts
  }

  /**
   * Reads the inner nodes of the file `cid`. Rejects with ImageError: NOT_FOUND (a directory), FAILED_PRECONDITION (not UnixFS),
   * RESOURCE_EXHAUSTED (over a limit); BlockError DATA_LOSS (sizes disagree), and as BlockSource.get.
   */
  static async open(cid: CID, blocks: BlockSource, request: BlockRequest): Promise<UnixfsFile> {
    const tree = await FileTree.read(cid, blocks, request)
    const leaves = tree.leaves()
    const leafStarts = new Float64Array(leaves.length + 1)
    const cidStarts = new Uint32Array(leaves.length + 1)
    for (const [index, { cid, size }] of leaves.entries()) {
      leafStarts[index + 1] = (leafStarts[index] ?? 0) + size
      cidStarts[index + 1] = (cidStarts[index] ?? 0) + cid.bytes.length
    }
    const cidBytes = new Uint8Array(cidStarts[leaves.length] ?? 0)
    for (const [index, { cid }] of leaves.entries()) cidBytes.set(cid.bytes, cidStarts[index])
    const file = new UnixfsFile(cid, blocks, leafStarts, cidBytes, cidStarts)
    file.#onlyBlock = tree.onlyBlock
    return file
  }

  /** The file that `toBytes` wrote down; asks nobody. Throws BlockError DATA_LOSS if the bytes are not such a list. */
  static fromBytes(bytes: Uint8Array, blocks: BlockSource): UnixfsFile {
    const body = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    const end = body.length - CHECKSUM_BYTES
    const intact =
      end >= MAGIC.length + 8 &&
      body.subarray(0, MAGIC.length).equals(MAGIC) &&
      body.subarray(end).equals(createHash('sha256').update(body.subarray(0, end)).digest())
    if (!intact) {
      throw damagedList(bytes.length)
    }
    const leaves = body.readUInt32LE(4)
    const rootBytes = body.readUInt32LE(8)
    const listAt = 12 + rootBytes
    const cidsAt = listAt + (leaves + 1) * 12
    if (cidsAt > end) throw damagedList(bytes.length)
    const cid = rootOf(body.subarray(12, listAt), bytes.length)
    const leafStarts = new Float64Array(leaves + 1)
    const cidStarts = new Uint32Array(leaves + 1)
    for (let index = 0; index <= leaves; index++) {
      leafStarts[index] = body.readDoubleLE(listAt + index * 8)
      cidStarts[index] = body.readUInt32LE(listAt + (leaves + 1) * 8 + index * 4)
    }
    if (!isAscending(leafStarts) || !isAscending(cidStarts) || cidStarts[leaves] !== end - cidsAt) {
      throw damagedList(bytes.length)
    }
    return new UnixfsFile(
      cid,
      blocks,
      leafStarts,
      new Uint8Array(body.subarray(cidsAt, end)),
      cidStarts,
    )
  }

  /** The list of leaves as bytes, for the disk: 12 bytes a leaf and its CID, with a checksum. */
  toBytes(): Uint8Array {
    const root = this.cid.bytes
    const words = this.leafStarts.length
    const body = Buffer.alloc(
      12 + root.length + words * 12 + this.#cidBytes.length + CHECKSUM_BYTES,
    )
    MAGIC.copy(body)
    body.writeUInt32LE(this.leafCount, 4)
    body.writeUInt32LE(root.length, 8)
    body.set(root, 12)
    let at = 12 + root.length
    for (const start of this.leafStarts) at = body.writeDoubleLE(start, at)
    for (const start of this.#cidStarts) at = body.writeUInt32LE(start, at)
    body.set(this.#cidBytes, at)
    at += this.#cidBytes.length
    createHash('sha256').update(body.subarray(0, at)).digest().copy(body, at)
    return body
  }

  get leafCount(): number {
    return this.leafStarts.length - 1
  }

  /** The CID of leaf `index`. Throws RangeError if there is none. */
  leafCid(index: number): CID {
    if (!Number.isInteger(index) || index < 0 || index >= this.leafCount) {
      throw new RangeError(
        `file ${this.cid.toString()} has no leaf ${index}, only ${this.leafCount}`,
      )
    }
    return CID.decode(this.#cidBytes.subarray(this.#cidStarts[index], this.#cidStarts[index + 1]))
  }

  /** Which leaf holds the byte at `offset`, which must be in the file. */
  leafAt(offset: number): number {
    let [low, high] = [0, this.leafCount - 1]
    while (low < high) {
      const middle = (low + high + 1) >>> 1
      if ((this.leafStarts[middle] ?? 0) <= offset) low = middle
      else high = middle - 1
    }
    return low
  }

  /** The leaf that is exactly bytes `range`, which must be in the file; undefined if they are a part of one, or several. */
  leafOf({ start, end }: ByteRange): CID | undefined {
    const leaf = this.leafAt(start)
    const isWhole = this.leafStarts[leaf] === start && this.leafStarts[leaf + 1] === end
    return isWhole ? this.leafCid(leaf) : undefined
  }

  /** The content of leaf `index`, verified and as long as the list says. Rejects as BlockSource.get, and BlockError DATA_LOSS. */
  async readLeaf(index: number, request: BlockRequest): Promise<Uint8Array> {
    const cid = this.leafCid(index)
    const size = (this.leafStarts[index + 1] ?? 0) - (this.leafStarts[index] ?? 0)
    const content = await this.#leafContent(cid, size, request)
    if (content.length === size) return content
    throw new BlockError(
      'DATA_LOSS',
      `file ${this.cid.toString()}: leaf ${index}, ${cid.toString()}, has ${content.length} bytes, its parent says ${size}`,
      { cid: cid.toString(), leaf: index },
    )
  }

  async #leafContent(cid: CID, size: number, request: BlockRequest): Promise<Uint8Array> {
    const onlyBlock = this.#onlyBlock
    this.#onlyBlock = undefined
    if (onlyBlock !== undefined) return onlyBlock
    const block = await readBlock(this.#blocks, cid, request)
    if (cid.code !== DAG_PB) return block
    const node = decodeUnixfsNode(cid, block)
    // A node with content of its own and children is listed as a leaf for the first; what was taken for a leaf by its
    // sisters' looks may turn out to be a small tree, which is then read as one.
    if (node.links.length === 0 || node.data.length === size) return node.data
    const subtree = await UnixfsFile.open(cid, this.#blocks, request)
    return subtree.readRange({ start: 0, end: subtree.size }, request)
  }

  /**
   * Bytes `range` of the file; only leaves that overlap it are asked for, some at once. Throws RangeError if it is not in the
   * file; rejects as `readLeaf`. The array belongs to the caller.
   */
  async readRange(range: ByteRange, request: BlockRequest): Promise<Uint8Array> {
    this.#checkRange(range)
    if (range.start === range.end) return new Uint8Array()
    const [first, last] = [this.leafAt(range.start), this.leafAt(range.end - 1)]
    if (first === last) return this.#leafPart(first, range, request)
    const bytes = new Uint8Array(range.end - range.start)
    const leaves = Array.from({ length: last - first + 1 }, (_, index) => first + index)
    const { signal } = request
    await boundedParallel(
      leaves,
      { concurrency: READ_CONCURRENCY, signal },
      async (leaf, signal) => {
        const part = await this.#leafPart(leaf, range, { ...request, signal })
        bytes.set(part, Math.max((this.leafStarts[leaf] ?? 0) - range.start, 0))
        request.memory?.giveBack(part)
      },
    )
    return bytes
  }

  /** Bytes `range` in order, a leaf at a time, with READ_CONCURRENCY leaves asked for ahead of the reader. Fails as `readRange`. */
  async *stream(range: ByteRange, request: BlockRequest): AsyncGenerator<Uint8Array, void, void> {
    this.#checkRange(range)
    if (range.start === range.end) return
    const stop = new AbortController()
    const signal = AbortSignal.any([request.signal, stop.signal])
    const [first, last] = [this.leafAt(range.start), this.leafAt(range.end - 1)]
    const ahead: Promise<Uint8Array>[] = []
    let next = first
    try {
      for (let leaf = first; leaf <= last; leaf++) {
        for (; next <= last && next < leaf + READ_CONCURRENCY; next++) {
          const part = this.#leafPart(next, range, { ...request, signal })
          part.catch(() => undefined) // Told when its turn comes, or not at all if the reader has left.
          ahead.push(part)
        }
        const part = await ahead.shift()
        if (part !== undefined && part.length > 0) yield part
      }
    } finally {
      stop.abort()
    }
  }

  async #leafPart(leaf: number, range: ByteRange, request: BlockRequest): Promise<Uint8Array> {
    const content = await this.readLeaf(leaf, request)
    const start = this.leafStarts[leaf] ?? 0
    return content.subarray(Math.max(range.start - start, 0), range.end - start)
  }

  #checkRange({ start, end }: ByteRange): void {
    const whole = Number.isSafeInteger(start) && Number.isSafeInteger(end)
    if (whole && start >= 0 && start <= end && end <= this.size) return
    throw new RangeError(
      `[${start}, ${end}) is not in file ${this.cid.toString()} of ${this.size} bytes`,
    )
  }
}

/** A place in the tree: a leaf, or an inner node whose parts are filled in when it has been read. */
type Place = { leaf: Leaf } | { parts: Place[] }
type Unread = { cid: CID; size: number | undefined; depth: number; place: { parts: Place[] } }

/** The inner nodes of a file, read top down and in parallel. */
class FileTree {
  readonly #root: CID
  readonly #blocks: BlockSource
  readonly #request: BlockRequest
  #innerNodes = 0
  #leaves = 0
  readonly #top: { parts: Place[] } = { parts: [] }
  /** The root's block, if it is all there is. */
  onlyBlock: Uint8Array | undefined

  private constructor(root: CID, blocks: BlockSource, request: BlockRequest) {
    this.#root = root
    this.#blocks = blocks
    this.#request = request
  }

  static async read(root: CID, blocks: BlockSource, request: BlockRequest): Promise<FileTree> {
    checkUnixfsCodec(root)
    const tree = new FileTree(root, blocks, request)
    if (root.code === DAG_PB) {
      const top: Unread = { cid: root, size: undefined, depth: 0, place: tree.#top }
      const bounds = { concurrency: OPEN_CONCURRENCY, signal: request.signal }
      await boundedParallel([top], bounds, (unread, signal, add) =>
        tree.#expand(unread, signal, add),
      )
    } else {
      tree.onlyBlock = await readBlock(blocks, root, request)
      tree.#addLeaf(tree.#top.parts, { cid: root, size: tree.onlyBlock.length })
    }
    return tree
  }

  leaves(): Leaf[] {
    const leaves: Leaf[] = []
    const collect = (parts: readonly Place[]): void => {
      for (const part of parts) {
        if ('leaf' in part) leaves.push(part.leaf)
        else collect(part.parts)
      }
    }
    collect(this.#top.parts)
    return leaves
  }

  async #expand(unread: Unread, signal: AbortSignal, add: (more: Unread) => void): Promise<void> {
    const { cid, size, depth, place } = unread
    this.#innerNodes++
    if (this.#innerNodes > INNER_NODES_MAX) throw this.#tooLarge(`${INNER_NODES_MAX} inner nodes`)
    if (depth > TREE_DEPTH_MAX) throw this.#tooLarge(`a depth of ${TREE_DEPTH_MAX} nodes`)
    const node = await this.#node(cid, signal)
    if (size !== undefined && node.fileSize !== size) {
      throw new BlockError(
        'DATA_LOSS',
        `file ${this.#root.toString()}: node ${cid.toString()} has ${node.fileSize} bytes under it, its parent says ${size}`,
        { cid: cid.toString() },
      )
    }
    if (node.data.length > 0) this.#addLeaf(place.parts, { cid, size: node.data.length })
    const leafSizeMax = await this.#leafSizeMax(node, signal)
    for (const link of node.links) {
      checkUnixfsCodec(link.cid)
      if (link.fileSize === 0) continue
      if (link.cid.code !== DAG_PB || link.fileSize <= leafSizeMax) {
        this.#checkLeafSize(link.cid, link.fileSize)
        this.#addLeaf(place.parts, { cid: link.cid, size: link.fileSize })
      } else {
        const inner = { parts: [] }
        place.parts.push(inner)
        add({ cid: link.cid, size: link.fileSize, depth: depth + 1, place: inner })
      }
    }
  }

  /**
   * Children of dag-pb do not show whether they are leaves, and asking each would read the whole file. So the first is asked: if it is
   * a leaf, its sisters that are not larger count as leaves as well (balanced and trickle layouts keep leaves together, in front).
   */
  async #leafSizeMax(node: UnixfsNode, signal: AbortSignal): Promise<number> {
    const first = node.links.find(({ cid, fileSize }) => cid.code === DAG_PB && fileSize > 0)
    if (first === undefined || first.fileSize > BLOCK_BYTES_MAX) return 0
    const { links } = await this.#node(first.cid, signal)
    return links.length === 0 ? first.fileSize : 0
  }

  async #node(cid: CID, signal: AbortSignal): Promise<UnixfsNode> {
    const block = await readBlock(this.#blocks, cid, { ...this.#request, signal })
    const node = decodeUnixfsNode(cid, block)
    if (node.kind === 'file') return node
    const kind = node.kind === 'symlink' ? 'symlink' : 'directory'
    throw new ImageError('NOT_FOUND', `${cid.toString()} is a ${kind}, not a file`, {
      cid: cid.toString(),
    })
  }

  #addLeaf(parts: Place[], leaf: Leaf): void {
    this.#leaves++
    if (this.#leaves > LEAVES_MAX) throw this.#tooLarge(`${LEAVES_MAX} leaves`)
    parts.push({ leaf })
  }

  #checkLeafSize(cid: CID, size: number): void {
    if (size <= BLOCK_BYTES_MAX) return
    throw this.#tooLarge(`blocks of ${BLOCK_BYTES_MAX} bytes (${cid.toString()} has ${size})`)
  }

  #tooLarge(limit: string): ImageError {
    return new ImageError(
      'RESOURCE_EXHAUSTED',
      `file ${this.#root.toString()} goes beyond the limit of ${limit}`,
      { cid: this.#root.toString() },
    )
  }
}

function damagedList(bytes: number): BlockError {
  return new BlockError('DATA_LOSS', `a stored list of leaves is damaged (${bytes} bytes)`)
}

function rootOf(bytes: Uint8Array, listBytes: number): CID {
  try {
    return CID.decode(bytes)
  } catch {
    throw damagedList(listBytes)
  }
}

/** Whether these are places from 0 on, whole and in order. */
function isAscending(starts: Float64Array | Uint32Array): boolean {
  return (
    starts[0] === 0 &&
    starts.every((start, index) => Number.isSafeInteger(start) && start >= (starts[index - 1] ?? 0))
  )
}
