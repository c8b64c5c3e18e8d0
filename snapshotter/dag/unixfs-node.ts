import { Node } from 'ipfs-unixfs'
import { CID } from 'multiformats/cid'
import { BlockError, ImageError } from '../errors.ts'

/** Largest block, in bytes: 2 MiB, the most that bitswap peers and gateways pass on (IPIP-412 and kubo's import limit). */
export const BLOCK_BYTES_MAX: number = 2 * 1024 * 1024

/** Codecs of the multicodec table that UnixFS is made of. */
export const RAW = 0x55
export const DAG_PB = 0x70

const CODEC_NAMES: ReadonlyMap<number, string> = new Map([
  [0x51, 'cbor'],
  [0x71, 'dag-cbor'],
  [0x78, 'git'],
  [0x0129, 'dag-json'],
  [0x0200, 'json'],
  [0x0202, 'a CAR file'],
])

/** One dag-pb block of UnixFS, decoded and checked (specs.ipfs.tech, UnixFS). */
export type UnixfsNode = {
  readonly kind: 'file' | 'directory' | 'shard' | 'symlink'
  /** Content in the block itself: all of a leaf, or what comes before the children. */
  readonly data: Uint8Array
  readonly links: readonly UnixfsLink[]
  /** Bytes of file content under this node. */
  readonly fileSize: number
}
export type UnixfsLink = {
  readonly cid: CID
  readonly name: string
  /** Bytes of file content under the link; 0 in directories. */
  readonly fileSize: number
}

/** Throws ImageError FAILED_PRECONDITION if `cid` is not of a codec that UnixFS files and directories are made of. */
export function checkUnixfsCodec(cid: CID): void {
  if (cid.code === RAW || cid.code === DAG_PB) return
  const codec = CODEC_NAMES.get(cid.code) ?? `codec 0x${cid.code.toString(16)}`
  throw new ImageError(
    'FAILED_PRECONDITION',
    `${cid.toString()} is ${codec}, not a UnixFS file or directory; images are UnixFS: make one with ipdr push, or give the CID of the directory`,
    { cid: cid.toString(), codec: cid.code },
  )
}

/** Decodes the dag-pb block of `cid`. Throws BlockError DATA_LOSS if it is not UnixFS or its sizes disagree. */
export function decodeUnixfsNode(cid: CID, block: Uint8Array): UnixfsNode {
  let node: Node
  try {
    node = Node.decode(block)
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw notUnixfs(cid, `it does not decode as dag-pb (${reason})`, cause)
  }
  const { data, links } = node
  const kind = kindOf(data?.type)
  if (data === undefined || kind === undefined) {
    throw notUnixfs(cid, `its type is ${data?.type ?? 'missing'}`)
  }
  const content = data.data ?? new Uint8Array()
  if (kind === 'shard') checkFanout(cid, data.fanOut)
  if (kind !== 'file') {
    return {
      kind,
      data: content,
      links: links.map((link) => ({ ...decodeLink(cid, link), fileSize: 0 })),
      fileSize: 0,
    }
  }
  if (data.blockSizes.length !== links.length) {
    throw notUnixfs(cid, `it has ${links.length} links and ${data.blockSizes.length} block sizes`)
  }
  const children = links.map((link, index) => ({
    ...decodeLink(cid, link),
    fileSize: sizeOf(cid, data.blockSizes[index] ?? 0n),
  }))
  const fileSize = children.reduce((sum, child) => sum + child.fileSize, content.length)
  const said = data.fileSize === undefined ? fileSize : sizeOf(cid, data.fileSize)
  if (said !== fileSize || !Number.isSafeInteger(fileSize)) {
    throw notUnixfs(cid, `it says ${said} bytes, its parts add up to ${fileSize}`)
  }
  return { kind, data: content, links: children, fileSize }
}

/** Largest fan-out of a sharded directory; kubo's and the specification's bound. */
const FANOUT_MAX = 1024n

function checkFanout(cid: CID, fanOut: bigint | undefined): void {
  const valid = fanOut !== undefined && fanOut >= 8n && fanOut <= FANOUT_MAX
  if (valid && (fanOut & (fanOut - 1n)) === 0n) return
  throw notUnixfs(cid, `its fan-out ${fanOut} is not a power of two from 8 to ${FANOUT_MAX}`)
}

function kindOf(type: string | undefined): UnixfsNode['kind'] | undefined {
  switch (type) {
    case 'FILE':
    case 'RAW':
      return 'file'
    case 'DIRECTORY':
      return 'directory'
    case 'HAMT_SHARD':
      return 'shard'
    case 'SYMLINK':
      return 'symlink'
    default:
      return undefined
  }
}

function decodeLink(
  parent: CID,
  link: { hash?: Uint8Array | undefined; name?: string | undefined },
): { cid: CID; name: string } {
  try {
    return { cid: CID.decode(link.hash ?? new Uint8Array()), name: link.name ?? '' }
  } catch (cause) {
    throw notUnixfs(parent, `a link of it holds no CID`, cause)
  }
}

function sizeOf(cid: CID, size: bigint): number {
  if (size <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(size)
  throw notUnixfs(cid, `it says that ${size} bytes are below it`)
}

function notUnixfs(cid: CID, problem: string, cause?: unknown): BlockError {
  return new BlockError(
    'DATA_LOSS',
    `block ${cid.toString()} is not UnixFS: ${problem}`,
    { cid: cid.toString() },
    cause,
  )
}
