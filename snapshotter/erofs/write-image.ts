import { LayerError } from '../errors.ts'
import type { DirNode, FileNode, TreeNode } from '../toc/layer-tree.ts'
import { directoryNames, directorySize, writeDirectory } from './directory-blocks.ts'
import { chunkBytes, type FileBlocks, fileBlocks } from './file-blocks.ts'
import {
  BLOCK_BITS,
  BLOCK_BYTES,
  CHUNK_FORMAT_INDEXES,
  CHUNK_INDEX_BYTES,
  COMPAT_MTIME,
  DEVICE_SLOT_BYTES,
  DEVICE_TAG_BYTES,
  INCOMPAT_CHUNKED_FILE,
  INCOMPAT_DEVICE_TABLE,
  INODE_BYTES,
  LAYOUT_CHUNK_BASED,
  LAYOUT_FLAT_INLINE,
  LAYOUT_FLAT_PLAIN,
  NID_BYTES,
  NO_BLOCK,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_DEVICES_AT,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_OFFSET,
} from './format.ts'
import { xattrBytes, xattrCount } from './xattr-bytes.ts'

/** Bytes of content copied into one image. 64 MiB: only files that tar cut at odd places need it, and those are rare. */
export const INLINED_BYTES_MAX: number = 64 * 1024 * 1024

/** Chunks of sparse files in one image. 8 Mi of 8 bytes are 64 MiB; holes at 4 KiB granularity then span 32 GiB. */
export const CHUNKS_MAX: number = 8 * 1024 * 1024

/** Bytes of one image. 2 GiB: two million inodes of about 130 bytes are 250 MiB, the rest is for attributes. */
export const IMAGE_BYTES_MAX: number = 2 * 1024 ** 3

/** Extra devices of one image. 4,096: the most that was seen to mount (224 ms); overlayfs stops at 500 layers. */
export const DEVICES_MAX = 4096

export type ErofsImageOptions = {
  /** The layer files, bottom first: `FileNode.layer` counts in this list, and the mount names them in this order. */
  readonly devices: readonly {
    /** Kept in the image for people who look at it; up to 64 bytes are. */
    readonly tag: string
    /** Bytes of the layer file. */
    readonly bytes: number
  }[]
  /** 16 bytes. Equal trees and options give equal images, so derive it from what the image stands for. */
  readonly uuid: Uint8Array
  /** The content of a file that `filesToInline` names, `size` bytes long. */
  readonly inline?: (file: FileNode) => Uint8Array
}

export type ErofsImage = {
  readonly bytes: Uint8Array
  readonly inodes: number
  /** Extended attributes that EROFS cannot hold and the image therefore lacks. */
  readonly droppedXattrs: number
}

/**
 * The files whose content has to be given to `writeErofsImage` because no blocks of the layer hold it as it is.
 * Throws LayerError RESOURCE_EXHAUSTED if they have more than `INLINED_BYTES_MAX` bytes together.
 */
export function filesToInline(root: DirNode): FileNode[] {
  const files = new Set<FileNode>()
  let inlinedBytes = 0
  const pending: DirNode[] = [root]
  for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
    for (const node of directory.children.values()) {
      if (node.kind === 'dir') pending.push(node)
      if (node.kind !== 'reg' || files.has(node) || fileBlocks(node).kind !== 'inlined') continue
      files.add(node)
      inlinedBytes += node.size
      checkTotals({ end: 0, inlinedBytes, chunks: 0 })
    }
  }
  return [...files]
}

/**
 * An EROFS image of names and attributes whose files' content lies in the extra devices.
 * Format: fs/erofs/erofs_fs.h of Linux, as of 6.12; blocks of 512 bytes, uncompressed.
 * Throws LayerError: RESOURCE_EXHAUSTED where one of the limits above is passed, INVALID_ARGUMENT if the records of 512
 * bytes that hold a file's content are not all within its layer.
 */
export function writeErofsImage(root: DirNode, options: ErofsImageOptions): ErofsImage {
  const plan = planImage(root, options)
  const image = Buffer.alloc(plan.blocks * BLOCK_BYTES)
  for (const inode of plan.inodes) {
    writeInode(image, inode, plan)
    writeContent(image, inode, plan, options)
  }
  writeDevices(image, plan, options)
  writeSuperblock(image, plan, options)
  return { bytes: image, inodes: plan.inodes.length, droppedXattrs: plan.droppedXattrs }
}

/** Where an inode's content lies. */
type Content =
  | Exclude<FileBlocks, { kind: 'inlined' }>
  /** In the image: right behind the inode, or in blocks from `block` on. */
  | { readonly kind: 'stored'; readonly size: number; readonly behindInode: boolean; block: number }

type Inode = {
  readonly node: TreeNode
  /** 1 for the root, counting in the order of the image. */
  readonly number: number
  readonly nid: number
  readonly xattrs: Uint8Array
  readonly content: Content
  /** Names that lead here; for a directory also its `.` and the `..` of those in it. */
  links: number
}

type PlannedDirectory = {
  readonly inode: Inode
  readonly parent: Inode
  readonly names: readonly string[]
}

type Plan = {
  readonly inodes: readonly Inode[]
  readonly inodeOf: ReadonlyMap<TreeNode, Inode>
  readonly directoryOf: ReadonlyMap<TreeNode, PlannedDirectory>
  /** Where each device starts in the one address space that files point into: block numbers. */
  readonly deviceStarts: readonly number[]
  /** Length of the image in blocks. */
  readonly blocks: number
  readonly droppedXattrs: number
}

function planImage(root: DirNode, options: ErofsImageOptions): Plan {
  const { devices } = options
  if (devices.length > DEVICES_MAX) {
    throw exhausted(`image of ${devices.length} layers, ${DEVICES_MAX} are possible`)
  }
  const inodes: Inode[] = []
  const inodeOf = new Map<TreeNode, Inode>()
  const directoryOf = new Map<TreeNode, PlannedDirectory>()
  const stored: Inode[] = []
  let [droppedXattrs, inlinedBytes, chunks] = [0, 0, 0]
  let end = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES + devices.length * DEVICE_SLOT_BYTES

  const add = (node: TreeNode, names: readonly string[]): Inode => {
    const xattrs = xattrBytes(xattrsOf(node))
    const content = contentOf(node, names, INODE_BYTES + xattrs.bytes.length, devices)
    const length = inodeLength(xattrs.bytes.length, content)
    const position = inodePosition(end, length, content)
    end = position + length
    const inode: Inode = {
      node,
      number: inodes.length + 1,
      nid: position / NID_BYTES,
      xattrs: xattrs.bytes,
      content,
      links: 0,
    }
    inodes.push(inode)
    inodeOf.set(node, inode)
    droppedXattrs += xattrs.dropped
    if (content.kind === 'stored') {
      if (node.kind === 'reg') inlinedBytes += content.size
      if (!content.behindInode) stored.push(inode)
    }
    if (content.kind === 'chunks') chunks += content.count
    checkTotals({ end, inlinedBytes, chunks })
    return inode
  }

  const addDirectory = (node: DirNode, parent?: Inode): PlannedDirectory => {
    const names = directoryNames(node.children)
    const inode = add(node, names)
    inode.links = 2
    const planned = { inode, parent: parent ?? inode, names }
    directoryOf.set(node, planned)
    return planned
  }

  // The inodes of one directory's entries lie together, for `ls -l` and `find` ask for them together.
  const pending = [addDirectory(root)]
  for (let current = pending.pop(); current !== undefined; current = pending.pop()) {
    const { node } = current.inode
    if (node.kind !== 'dir') continue
    const below: PlannedDirectory[] = []
    for (const name of current.names) {
      const child = node.children.get(name)
      if (child === undefined) continue // `.` and `..`
      if (child.kind === 'dir') {
        below.push(addDirectory(child, current.inode))
        current.inode.links++
      } else {
        const inode = inodeOf.get(child) ?? add(child, [])
        inode.links++
      }
    }
    for (const directory of below.toReversed()) pending.push(directory)
  }

  let blocks = Math.ceil(end / BLOCK_BYTES)
  for (const { content } of stored) {
    if (content.kind !== 'stored') continue
    content.block = blocks
    blocks += Math.ceil(content.size / BLOCK_BYTES)
  }
  checkTotals({ end: blocks * BLOCK_BYTES, inlinedBytes, chunks })
  return {
    inodes,
    inodeOf,
    directoryOf,
    deviceStarts: deviceStarts(blocks, devices),
    blocks,
    droppedXattrs,
  }
}

function contentOf(
  node: TreeNode,
  names: readonly string[],
  before: number,
  devices: ErofsImageOptions['devices'],
): Content {
  if (node.kind === 'reg') return fileContent(node, devices)
  let size = 0
  if (node.kind === 'dir') size = directorySize(names)
  if (node.kind === 'symlink') size = node.target.length
  if (size === 0) return { kind: 'empty' }
  return { kind: 'stored', size, behindInode: before + size <= BLOCK_BYTES, block: 0 }
}

function fileContent(file: FileNode, devices: ErofsImageOptions['devices']): Content {
  // Read in whole blocks: beyond the end of its backing file the kernel finds an I/O error, or another layer's bytes.
  const layerBytes = devices[file.layer]?.bytes ?? 0
  for (const { layerOffset, length } of file.extents) {
    const end = alignUp(layerOffset + length, BLOCK_BYTES)
    if (end > layerBytes) {
      throw new LayerError(
        'INVALID_ARGUMENT',
        `a file's content fills records up to ${end} of layer ${file.layer}, which is ${layerBytes} bytes long`,
        { layer: file.layer, layerOffset, length, layerBytes },
      )
    }
  }
  const found = fileBlocks(file)
  if (found.kind !== 'inlined') return found
  return { kind: 'stored', size: file.size, behindInode: false, block: 0 }
}

/** Bytes of an inode with what follows it at once: attributes, then chunk indexes or short content. */
function inodeLength(xattrs: number, content: Content): number {
  const bare = INODE_BYTES + xattrs
  if (content.kind === 'chunks') {
    return alignUp(bare, CHUNK_INDEX_BYTES) + content.count * CHUNK_INDEX_BYTES
  }
  return content.kind === 'stored' && content.behindInode ? bare + content.size : bare
}

/** Where the next inode goes: short content behind it must not cross a block (fs/erofs/inode.c), nor shall the inode. */
function inodePosition(end: number, length: number, content: Content): number {
  const position = alignUp(end, NID_BYTES)
  const whole = content.kind === 'stored' && content.behindInode ? length : INODE_BYTES
  return (position % BLOCK_BYTES) + whole > BLOCK_BYTES ? alignUp(position, BLOCK_BYTES) : position
}

function checkTotals(totals: { end: number; inlinedBytes: number; chunks: number }): void {
  const { end, inlinedBytes, chunks } = totals
  if (chunks > CHUNKS_MAX) {
    throw exhausted(
      `sparse files of more than ${CHUNKS_MAX} chunks: the holes are too fine for their size`,
    )
  }
  if (inlinedBytes > INLINED_BYTES_MAX) {
    throw exhausted(
      `files whose content does not lie on blocks of ${BLOCK_BYTES} bytes have more than ${INLINED_BYTES_MAX} bytes`,
    )
  }
  if (end > IMAGE_BYTES_MAX) throw exhausted(`metadata of more than ${IMAGE_BYTES_MAX} bytes`)
}

function deviceStarts(imageBlocks: number, devices: ErofsImageOptions['devices']): number[] {
  const starts: number[] = []
  let next = imageBlocks
  for (const { bytes } of devices) {
    starts.push(next)
    next += Math.floor(bytes / BLOCK_BYTES)
  }
  if (next >= NO_BLOCK) {
    throw exhausted(
      `layers of ${(next - imageBlocks) * BLOCK_BYTES} bytes together, one image addresses ${NO_BLOCK * BLOCK_BYTES}: mount them apart`,
    )
  }
  return starts
}

/** S_IFMT of stat(2), by kind. */
const typeBits: Readonly<Record<TreeNode['kind'], number>> = {
  fifo: 0o010000,
  char: 0o020000,
  whiteout: 0o020000,
  dir: 0o040000,
  block: 0o060000,
  reg: 0o100000,
  symlink: 0o120000,
}

function writeInode(image: Buffer, inode: Inode, plan: Plan): void {
  const { node, xattrs, content } = inode
  const at = inode.nid * NID_BYTES
  image.writeUInt16LE(1 | (layoutOf(content) << 1), at) // 1: the extended form.
  image.writeUInt16LE(xattrCount(xattrs.length), at + 0x02)
  image.writeUInt16LE(typeBits[node.kind] | (node.kind === 'whiteout' ? 0 : node.mode), at + 0x04)
  writeUInt64(image, sizeOf(node, content), at + 0x08)
  image.writeUInt32LE(locationOf(inode, plan), at + 0x10)
  image.writeUInt32LE(inode.number, at + 0x14)
  image.writeUInt32LE(inode.links, at + 0x2c)
  image.set(xattrs, at + INODE_BYTES)
  if (node.kind === 'whiteout') return
  image.writeUInt32LE(node.uid, at + 0x18)
  image.writeUInt32LE(node.gid, at + 0x1c)
  image.writeBigInt64LE(BigInt(node.mtimeSec), at + 0x20)
  image.writeUInt32LE(node.mtimeNsec, at + 0x28)
}

function layoutOf(content: Content): number {
  if (content.kind === 'chunks') return LAYOUT_CHUNK_BASED
  if (content.kind === 'stored' && content.behindInode) return LAYOUT_FLAT_INLINE
  return LAYOUT_FLAT_PLAIN
}

function sizeOf(node: TreeNode, content: Content): number {
  if (node.kind === 'reg') return node.size
  return content.kind === 'stored' ? content.size : 0
}

/** The inode's field i_u: first block, form of the chunks, or device number. */
function locationOf({ node, content }: Inode, plan: Plan): number {
  if (node.kind === 'whiteout') return deviceNumber(0, 0)
  if (node.kind === 'char' || node.kind === 'block') return deviceNumber(node.major, node.minor)
  if (content.kind === 'run') {
    return (plan.deviceStarts[content.layer] ?? 0) + content.layerOffset / BLOCK_BYTES
  }
  if (content.kind === 'chunks') return CHUNK_FORMAT_INDEXES | content.chunkBits
  return content.kind === 'stored' && !content.behindInode ? content.block : NO_BLOCK
}

/** new_encode_dev of linux/kdev_t.h: 12 bits of major between the low 8 and the high 12 of minor. */
function deviceNumber(major: number, minor: number): number {
  return ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0
}

function writeContent(image: Buffer, inode: Inode, plan: Plan, options: ErofsImageOptions): void {
  const { node, content } = inode
  const behind = inode.nid * NID_BYTES + INODE_BYTES + inode.xattrs.length
  if (content.kind === 'chunks') {
    writeChunks(image, alignUp(behind, CHUNK_INDEX_BYTES), content)
  }
  if (content.kind !== 'stored') return
  const offset = content.behindInode ? behind : content.block * BLOCK_BYTES
  if (node.kind === 'dir') {
    const directory = plan.directoryOf.get(node)
    if (directory !== undefined) writeNames(image, offset, directory, node, plan)
  } else if (node.kind === 'symlink') {
    image.write(node.target, offset, 'latin1')
  } else if (node.kind === 'reg') {
    image.set(inlinedBytes(node, options), offset)
  }
}

function writeNames(
  image: Buffer,
  offset: number,
  directory: PlannedDirectory,
  node: DirNode,
  plan: Plan,
): void {
  writeDirectory(image, offset, directory.names, (name) => {
    if (name === '.') return { nid: directory.inode.nid, kind: 'dir' }
    if (name === '..') return { nid: directory.parent.nid, kind: 'dir' }
    const child = node.children.get(name)
    const inode = child === undefined ? undefined : plan.inodeOf.get(child)
    return { nid: inode?.nid ?? 0, kind: child?.kind ?? 'reg' }
  })
}

function writeChunks(
  image: Buffer,
  offset: number,
  { layer, chunkBits, count, extents }: Extract<Content, { kind: 'chunks' }>,
): void {
  const step = chunkBytes(chunkBits)
  for (let index = 0; index < count; index++) {
    image.writeUInt32LE(NO_BLOCK, offset + index * CHUNK_INDEX_BYTES + 4) // A hole, until an extent says otherwise.
  }
  for (const { fileOffset, layerOffset, length } of extents) {
    for (let done = 0; done < length; done += step) {
      const entry = offset + ((fileOffset + done) / step) * CHUNK_INDEX_BYTES
      image.writeUInt16LE(layer + 1, entry + 2) // Device slots count from 1, and blocks from the device's start.
      image.writeUInt32LE((layerOffset + done) / BLOCK_BYTES, entry + 4)
    }
  }
}

function inlinedBytes(file: FileNode, { inline }: ErofsImageOptions): Uint8Array {
  const bytes = inline?.(file)
  if (bytes?.length !== file.size) {
    throw new LayerError(
      'INTERNAL',
      `the content of a file to inline is ${bytes?.length ?? 'not given'}, not ${file.size} bytes`,
    )
  }
  return bytes
}

function writeDevices(image: Buffer, plan: Plan, { devices }: ErofsImageOptions): void {
  for (const [index, { tag, bytes }] of devices.entries()) {
    const at = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES + index * DEVICE_SLOT_BYTES
    image.write(tag, at, DEVICE_TAG_BYTES)
    image.writeUInt32LE(Math.floor(bytes / BLOCK_BYTES), at + 0x40)
    image.writeUInt32LE(plan.deviceStarts[index] ?? 0, at + 0x44)
  }
}

function writeSuperblock(image: Buffer, plan: Plan, { devices, uuid }: ErofsImageOptions): void {
  const hasChunks = plan.inodes.some(({ content }) => content.kind === 'chunks')
  const at = SUPERBLOCK_OFFSET
  image.writeUInt32LE(SUPERBLOCK_MAGIC, at)
  // No checksum (COMPAT 1): mkfs.erofs makes none with blocks this small either, and fsck.erofs 1.8 crashes on one.
  image.writeUInt32LE(COMPAT_MTIME, at + 0x08)
  image.writeUInt8(BLOCK_BITS, at + 0x0c)
  image.writeUInt16LE(plan.inodes[0]?.nid ?? 0, at + 0x0e)
  writeUInt64(image, plan.inodes.length, at + 0x10)
  image.writeUInt32LE(plan.blocks, at + 0x24)
  image.set(uuid, at + 0x30)
  image.writeUInt32LE(
    (hasChunks ? INCOMPAT_CHUNKED_FILE : 0) | (devices.length > 0 ? INCOMPAT_DEVICE_TABLE : 0),
    at + 0x50,
  )
  image.writeUInt16LE(devices.length, at + SUPERBLOCK_DEVICES_AT)
  image.writeUInt16LE((at + SUPERBLOCK_BYTES) / DEVICE_SLOT_BYTES, at + 0x58)
}

const noXattrs: ReadonlyMap<string, Uint8Array> = new Map()
const opaqueMark = Buffer.from('y')

function xattrsOf(node: TreeNode): ReadonlyMap<string, Uint8Array> {
  if (node.kind === 'whiteout') return noXattrs
  if (node.kind !== 'dir' || !node.opaque) return node.xattrs
  return new Map([...node.xattrs, ['trusted.overlay.opaque', opaqueMark]])
}

function writeUInt64(image: Buffer, value: number, offset: number): void {
  image.writeUInt32LE(value % 2 ** 32, offset)
  image.writeUInt32LE(Math.floor(value / 2 ** 32), offset + 4)
}

function alignUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit
}

function exhausted(problem: string): LayerError {
  return new LayerError('RESOURCE_EXHAUSTED', `layer cannot be mounted: ${problem}`)
}
