import type { Extent } from './layer-toc.ts'

/** What a node of any kind carries. Hard links are one node under several names. */
type NodeAttributes = {
  mode: number
  uid: number
  gid: number
  mtimeSec: number
  mtimeNsec: number
  xattrs: ReadonlyMap<string, Uint8Array>
}

export type DirNode = NodeAttributes & {
  kind: 'dir'
  /** Children by name (latin1, one char a byte). */
  children: Map<string, TreeNode>
  /** The layer says that nothing below this directory shows from lower layers. */
  opaque: boolean
  /**
   * The tar never names this directory, it only holds something that the tar names: its attributes are a stand-in, and
   * where a lower layer has the directory, that one's are meant.
   */
  implied: boolean
}
export type FileNode = NodeAttributes & {
  kind: 'reg'
  size: number
  /** Which layer's file the extents point into: 0 for a single layer; position in the chain, bottom first, when merged. */
  layer: number
  extents: readonly Extent[]
}
export type LinkNode = NodeAttributes & { kind: 'symlink'; target: string }
export type DeviceNode = NodeAttributes & { kind: 'char' | 'block'; major: number; minor: number }
export type FifoNode = NodeAttributes & { kind: 'fifo' }
/** A name that this layer removes from the layers below. */
export type WhiteoutNode = { kind: 'whiteout' }

export type TreeNode = DirNode | FileNode | LinkNode | DeviceNode | FifoNode | WhiteoutNode

/** The most directories below one another. 2,048: a path of PATH_MAX, 4,096 bytes, with names of one byte. */
export const DEPTH_MAX = 2048

/**
 * Whether overlayfs takes `node` for the removal of its name: a whiteout, or a character device 0:0, which is what
 * whiteouts look like on disk and may therefore also stand in a tar.
 */
export function isWhiteout(node: TreeNode): boolean {
  return node.kind === 'whiteout' || (node.kind === 'char' && node.major === 0 && node.minor === 0)
}
