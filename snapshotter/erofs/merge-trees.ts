import { type DirNode, type FileNode, isWhiteout } from '../toc/layer-tree.ts'

/**
 * One tree that shows what overlayfs would show of `trees`, bottom first: upper entries hide lower ones, directories
 * merge with the upper one's attributes unless that one is opaque or only implied, whiteouts have done their work and are
 * gone. `FileNode.layer` becomes the tree's position. Hard links stay shared within their layer. The input is not changed.
 */
export function mergeTrees(trees: readonly DirNode[]): DirNode {
  const merged = emptyDirectory()
  for (const [layer, tree] of trees.entries()) new Overlay(layer).lay(tree, merged)
  return merged
}

/** Lays one tree over what is below. */
class Overlay {
  readonly #layer: number
  /** Copies of this layer's files: a hard link under two names must stay one node. */
  readonly #files = new Map<FileNode, FileNode>()

  constructor(layer: number) {
    this.#layer = layer
  }

  lay(tree: DirNode, below: DirNode): void {
    const pending: { upper: DirNode; lower: DirNode }[] = [{ upper: tree, lower: below }]
    for (let pair = pending.pop(); pair !== undefined; pair = pending.pop()) {
      const { upper, lower } = pair
      if (upper.opaque) lower.children.clear()
      if (!upper.implied || lower.implied) takeAttributes(lower, upper)
      for (const [name, node] of upper.children) {
        if (isWhiteout(node)) {
          lower.children.delete(name)
        } else if (node.kind === 'dir') {
          const existing = lower.children.get(name)
          const directory = existing?.kind === 'dir' ? existing : emptyDirectory()
          lower.children.set(name, directory)
          pending.push({ upper: node, lower: directory })
        } else {
          lower.children.set(name, node.kind === 'reg' ? this.#copied(node) : node)
        }
      }
    }
  }

  #copied(file: FileNode): FileNode {
    const known = this.#files.get(file)
    if (known !== undefined) return known
    const copy = { ...file, layer: this.#layer }
    this.#files.set(file, copy)
    return copy
  }
}

/**
 * `tree` with every implied directory given the attributes it has in `below`, the merged tree of the layers under it; an
 * implied directory that is not there keeps its own. So containerd does when it unpacks (mkparent of archive/tar.go), and
 * a layer mounted by itself needs it, because overlayfs takes a directory's attributes from the uppermost layer that has
 * it. Gives `tree` itself back where nothing changes, which is nearly always, and the image can then be shared.
 */
export function inheritImplied(tree: DirNode, below: DirNode): DirNode {
  let changed = false
  const inherited: DirNode = { ...tree }
  const pending: { copy: DirNode; lower: DirNode }[] = [{ copy: inherited, lower: below }]
  for (let pair = pending.pop(); pair !== undefined; pair = pending.pop()) {
    const { copy, lower } = pair
    if (copy.implied && !lower.implied) {
      takeAttributes(copy, lower)
      changed = true
    }
    copy.children = new Map(copy.children)
    if (copy.opaque) continue // What is below shows nothing of lower layers, so it takes nothing from them.
    for (const [name, node] of copy.children) {
      const under = lower.children.get(name)
      if (node.kind !== 'dir' || under?.kind !== 'dir') continue
      const child = { ...node }
      copy.children.set(name, child)
      pending.push({ copy: child, lower: under })
    }
  }
  return changed ? inherited : tree
}

function takeAttributes(target: DirNode, source: DirNode): void {
  target.mode = source.mode
  target.uid = source.uid
  target.gid = source.gid
  target.mtimeSec = source.mtimeSec
  target.mtimeNsec = source.mtimeNsec
  target.xattrs = source.xattrs
  target.implied = source.implied
}

/** Takes the attributes of whatever is laid on it first. */
function emptyDirectory(): DirNode {
  return {
    kind: 'dir',
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtimeSec: 0,
    mtimeNsec: 0,
    xattrs: new Map(),
    children: new Map(),
    opaque: false,
    implied: true,
  }
}
