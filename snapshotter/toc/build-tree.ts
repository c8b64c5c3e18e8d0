import { LayerError } from '../errors.ts'
import type { EntryKind, LayerToc, TocEntry } from './layer-toc.ts'
import {
  DEPTH_MAX,
  type DirNode,
  isWhiteout,
  type TreeNode,
  type WhiteoutNode,
} from './layer-tree.ts'

/** Files, directories and so on in one layer. 2 million: some 500 bytes each while a tree is in use, 1 GiB. */
export const NODES_MAX = 2_000_000

/** Bytes of one name: NAME_MAX of linux/limits.h, and of EROFS. */
export const NAME_BYTES_MAX = 255

/** Bytes of a symlink's target: PATH_MAX of linux/limits.h less the closing zero. */
export const SYMLINK_TARGET_BYTES_MAX = 4095

/** Symlinks followed to find one directory. 40: MAXSYMLINKS of linux/namei.h, a longer chain is of no use in the container. */
const SYMLINKS_FOLLOWED_MAX = 40

/** 4,294,967,295 means "leave the owner as it is" to chown(2). */
const OWNER_MAX = 0xffff_fffe

/** Twelve and twenty bits: what MKDEV of linux/kdev_t.h holds. */
const DEVICE_MAJOR_MAX = 0xfff
const DEVICE_MINOR_MAX = 0xf_ffff

/** containerd stores times outside of 1970 to 2262 (nanoseconds in 63 bits) as 1970. */
const MTIME_SECONDS_MAX = 9_223_372_036

// Prefixes of names with a meaning: image-spec, layer.md, section "Whiteouts".
const WHITEOUT = '.wh.'
const OPAQUE_WHITEOUT = '.wh..wh..opq'
const AUFS_METADATA = '.wh..wh.'

/** For the machine's administrator, overlayfs among them. containerd takes none from a layer: who made it is not one. */
const ADMINISTRATOR_XATTRS = 'trusted.'

/** All whiteouts are one node, as overlayfs itself makes them: they carry nothing but their name. */
const whiteout: WhiteoutNode = { kind: 'whiteout' }

/**
 * The tree that a layer's tar describes, as containerd's archive.Apply would leave it on disk (archive/tar.go): later
 * entries replace earlier ones, a directory named twice keeps its children, parents never named are made (0755, root,
 * 1970; marked `implied`), a path may lead through symlinks of the same layer but never out of its root, a hard link's
 * own header applies to the file it shares. Where two entries say different things of lower layers, image-spec decides:
 * a whiteout never removes an entry of its own layer, and a directory beside its own whiteout is opaque.
 * Throws LayerError: INVALID_ARGUMENT names the entry that cannot be, RESOURCE_EXHAUSTED a layer beyond `NODES_MAX`.
 */
export function buildTree(toc: LayerToc): DirNode {
  const builder = new TreeBuilder()
  for (const entry of toc.entries) builder.add(entry)
  return builder.root
}

/** A node with attributes: what an entry can make or share. */
type OwnNode = Exclude<TreeNode, WhiteoutNode>

class TreeBuilder {
  readonly root: DirNode = impliedDirectory(false)
  #nodes = 1
  /** Tar goes through a directory in one go: the last parent is nearly always the next one too. */
  #lastParent: { readonly path: string; readonly directory: DirNode } | undefined

  add(entry: TocEntry): void {
    checkNumbers(entry)
    if (entry.path === '') {
      // containerd skips this entry. In a container the upper directory decides; a view should show what the tar says.
      if (entry.kind !== 'dir') throw invalid(entry, `is the root directory, yet a ${entry.kind}`)
      setAttributes(this.root, entry)
      this.root.implied = false
      return
    }
    const { parentPath, name } = split(entry.path)
    if (entry.path.startsWith(AUFS_METADATA) || entry.path.includes(`/${AUFS_METADATA}`)) {
      if (name === OPAQUE_WHITEOUT) this.#parent(parentPath, entry).opaque = true
      return
    }
    if (name.length > NAME_BYTES_MAX) {
      throw invalid(
        entry,
        `has a name of ${name.length} bytes, file systems hold ${NAME_BYTES_MAX}`,
      )
    }
    const parent = this.#parent(parentPath, entry)
    if (name.startsWith(WHITEOUT)) this.#remove(parent, name.slice(WHITEOUT.length), entry)
    else this.#place(parent, name, entry)
  }

  /** A whiteout: what lower layers have under this name is gone, what this layer has stays. */
  #remove(parent: DirNode, name: string, entry: TocEntry): void {
    if (name === '' || name === '.' || name === '..') {
      throw invalid(entry, 'is a whiteout of no name')
    }
    const own = parent.children.get(name)
    if (own === undefined) {
      this.#count(entry)
      parent.children.set(name, whiteout)
    } else if (own.kind === 'dir') {
      own.opaque = true
    }
  }

  #place(parent: DirNode, name: string, entry: TocEntry): void {
    const existing = parent.children.get(name)
    if (existing?.kind === 'dir' && entry.kind === 'dir') {
      setAttributes(existing, entry)
      existing.implied = false
      return
    }
    if (existing !== undefined) {
      // Gone before a hard link looks for its target, as in containerd: a link to itself has none.
      parent.children.delete(name)
      this.#lastParent = undefined
    }
    this.#count(entry)
    const { kind } = entry
    const node = kind === 'hardlink' ? this.#linked(entry) : newNode(kind, entry, existing)
    parent.children.set(name, node)
  }

  /** The node that a hard link shares, with the link's own attributes applied to it. */
  #linked(entry: TocEntry): TreeNode {
    const targetPath = entry.linkTarget ?? ''
    const { parentPath, name } = split(targetPath)
    const target = this.#directory(parentPath, entry, 'find')?.children.get(name)
    if (target === undefined || target.kind === 'whiteout') {
      throw invalid(
        entry,
        `is a hard link to ${shown(targetPath)}, which is not in the layer before it`,
      )
    }
    if (target.kind === 'dir') {
      throw invalid(entry, `is a hard link to the directory ${shown(targetPath)}`)
    }
    setAttributes(target, entry)
    return target
  }

  #parent(path: string, entry: TocEntry): DirNode {
    if (this.#lastParent?.path === path) return this.#lastParent.directory
    const directory = this.#directory(path, entry, 'make')
    this.#lastParent = { path, directory }
    return directory
  }

  /** The directory at `path` through symlinks, held inside the root; what is missing is made or ends the search. */
  #directory(path: string, entry: TocEntry, missing: 'make'): DirNode
  #directory(path: string, entry: TocEntry, missing: 'find'): DirNode | undefined
  #directory(path: string, entry: TocEntry, missing: 'make' | 'find'): DirNode | undefined {
    const above: DirNode[] = []
    let current = this.root
    let followed = 0
    const parts = path.split('/').toReversed()
    for (let part = parts.pop(); part !== undefined; part = parts.pop()) {
      if (part === '' || part === '.') continue
      if (part === '..') {
        current = above.pop() ?? this.root
        continue
      }
      const child = current.children.get(part)
      if (child === undefined || child.kind === 'whiteout') {
        if (missing === 'find') return undefined
        if (part.length > NAME_BYTES_MAX) {
          throw invalid(entry, `has a directory name of ${part.length} bytes`)
        }
        this.#count(entry)
        const made = impliedDirectory(child !== undefined)
        current.children.set(part, made)
        above.push(current)
        current = made
      } else if (child.kind === 'dir') {
        above.push(current)
        current = child
      } else if (child.kind === 'symlink') {
        followed++
        if (followed > SYMLINKS_FOLLOWED_MAX) {
          throw invalid(entry, `leads through more than ${SYMLINKS_FOLLOWED_MAX} symlinks`)
        }
        if (child.target.startsWith('/')) {
          above.length = 0
          current = this.root
        }
        parts.push(...child.target.split('/').toReversed())
      } else {
        throw invalid(
          entry,
          `lies below ${shown(part)}, which is not a directory but a ${child.kind}`,
        )
      }
      if (above.length > DEPTH_MAX) {
        throw invalid(entry, `lies more than ${DEPTH_MAX} directories deep`)
      }
    }
    return current
  }

  #count(entry: TocEntry): void {
    this.#nodes++
    if (this.#nodes > NODES_MAX) {
      throw new LayerError(
        'RESOURCE_EXHAUSTED',
        `layer has more than ${NODES_MAX} files and directories, at entry ${shown(entry.path)}`,
        { path: shown(entry.path), limit: NODES_MAX },
      )
    }
  }
}

/** Permissions of a symlink, which no header changes: Linux has no others. */
const SYMLINK_MODE = 0o777

const noXattrs: ReadonlyMap<string, Uint8Array> = new Map()

function newNode(
  kind: Exclude<EntryKind, 'hardlink'>,
  entry: TocEntry,
  replaced: TreeNode | undefined,
): OwnNode {
  const node = bareNode(kind, entry, replaced)
  setAttributes(node, entry)
  return node
}

/** A node of its kind, all attributes still to be set. */
function bareNode(
  kind: Exclude<EntryKind, 'hardlink'>,
  entry: TocEntry,
  replaced: TreeNode | undefined,
): OwnNode {
  const unset = {
    mode: SYMLINK_MODE,
    uid: 0,
    gid: 0,
    mtimeSec: 0,
    mtimeNsec: 0,
    xattrs: noXattrs,
  }
  if (kind === 'dir') {
    const opaque = replaced !== undefined && isWhiteout(replaced)
    return { kind, ...unset, children: new Map(), opaque, implied: false }
  }
  if (kind === 'reg') {
    return { kind, ...unset, size: entry.size, layer: 0, extents: entry.extents ?? [] }
  }
  if (kind === 'symlink') {
    const target = entry.linkTarget ?? ''
    if (target === '' || target.length > SYMLINK_TARGET_BYTES_MAX) {
      throw invalid(
        entry,
        `is a symlink with a target of ${target.length} bytes, must be 1 to ${SYMLINK_TARGET_BYTES_MAX}`,
      )
    }
    return { kind, ...unset, target }
  }
  if (kind === 'fifo') return { kind, ...unset }
  const { devMajor: major = 0, devMinor: minor = 0 } = entry
  if (!isWithin(major, DEVICE_MAJOR_MAX) || !isWithin(minor, DEVICE_MINOR_MAX)) {
    throw invalid(entry, `is device ${major}:${minor}, Linux has no such numbers`)
  }
  return { kind, ...unset, major, minor }
}

/** What containerd does with a header after making the file: owner, xattrs on top of those there, mode, time. */
function setAttributes(node: OwnNode, entry: TocEntry): void {
  node.uid = entry.uid
  node.gid = entry.gid
  if (node.kind !== 'symlink') node.mode = entry.mode
  const inRange = isWithin(entry.mtimeSec, MTIME_SECONDS_MAX)
  node.mtimeSec = inRange ? entry.mtimeSec : 0
  node.mtimeNsec = inRange ? entry.mtimeNsec : 0
  if (entry.xattrs === undefined || entry.xattrs.size === 0) return
  const xattrs = new Map(node.xattrs)
  for (const [name, value] of entry.xattrs) {
    if (!name.startsWith(ADMINISTRATOR_XATTRS)) xattrs.set(name, value)
    else if (node.kind === 'dir' && isOpaqueMark(name, value)) node.opaque = true
  }
  node.xattrs = xattrs
}

/** Documentation/filesystems/overlayfs.rst, section "whiteouts and opaque directories". */
function isOpaqueMark(name: string, value: Uint8Array): boolean {
  return name === 'trusted.overlay.opaque' && value.length === 1 && value[0] === 0x79 // 'y'
}

function impliedDirectory(opaque: boolean): DirNode {
  return {
    kind: 'dir',
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtimeSec: 0,
    mtimeNsec: 0,
    xattrs: noXattrs,
    children: new Map(),
    opaque,
    implied: true,
  }
}

function checkNumbers(entry: TocEntry): void {
  if (!isWithin(entry.uid, OWNER_MAX) || !isWithin(entry.gid, OWNER_MAX)) {
    throw invalid(entry, `belongs to ${entry.uid}:${entry.gid}, owners go up to ${OWNER_MAX}`)
  }
}

function isWithin(value: number, max: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= max
}

function split(path: string): { parentPath: string; name: string } {
  const slash = path.lastIndexOf('/')
  return { parentPath: path.slice(0, Math.max(slash, 0)), name: path.slice(slash + 1) }
}

function invalid(entry: TocEntry, problem: string): LayerError {
  const path = shown(entry.path)
  return new LayerError('INVALID_ARGUMENT', `layer entry ${path} ${problem}`, { path })
}

/** Names are bytes; people read UTF-8. */
function shown(path: string): string {
  return Buffer.from(path, 'latin1').toString('utf8')
}
