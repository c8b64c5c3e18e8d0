import { createHash } from 'node:crypto'
import type {
  DeviceNode,
  DirNode,
  FifoNode,
  FileNode,
  LinkNode,
  TreeNode,
} from '../../../snapshotter/toc/layer-tree.ts'
import type { SeenEntry } from '../../support/read-tree.ts'
import { contentOf, type TestLayer } from './mounted-image.ts'

const attributes = { mode: 0o644, uid: 0, gid: 0, mtimeSec: 1_700_000_000, mtimeNsec: 0 }
const noXattrs: ReadonlyMap<string, Uint8Array> = new Map()

/** A directory of these children; attributes as given, else 0755, root and a fixed time. */
export function directory(
  children: Readonly<Record<string, TreeNode>> | ReadonlyMap<string, TreeNode>,
  overrides: Partial<DirNode> = {},
): DirNode {
  const entries = children instanceof Map ? children : Object.entries(children)
  return {
    kind: 'dir',
    ...attributes,
    mode: 0o755,
    xattrs: noXattrs,
    opaque: false,
    implied: false,
    children: new Map(entries as Iterable<[string, TreeNode]>),
    ...overrides,
  }
}

/** A regular file, empty unless `overrides` says otherwise. */
export function file(overrides: Partial<FileNode> = {}): FileNode {
  return {
    kind: 'reg',
    ...attributes,
    xattrs: noXattrs,
    size: 0,
    layer: 0,
    extents: [],
    ...overrides,
  }
}

export function symlink(target: string, overrides: Partial<LinkNode> = {}): LinkNode {
  return { kind: 'symlink', ...attributes, mode: 0o777, xattrs: noXattrs, target, ...overrides }
}

export function device(
  kind: 'char' | 'block',
  major: number,
  minor: number,
  overrides: Partial<DeviceNode> = {},
): DeviceNode {
  return { kind, ...attributes, xattrs: noXattrs, major, minor, ...overrides }
}

export function fifo(overrides: Partial<FifoNode> = {}): FifoNode {
  return { kind: 'fifo', ...attributes, xattrs: noXattrs, ...overrides }
}

const typeDigits = {
  fifo: '1',
  char: '2',
  whiteout: '2',
  dir: '4',
  block: '6',
  reg: '10',
  symlink: '12',
} as const

/** What `readTree` must see of a mounted tree: the plain reading of its nodes, which knows nothing of EROFS. */
export function expectedTree(
  root: DirNode,
  layers: readonly TestLayer[] = [],
): Map<string, SeenEntry> {
  const paths = new Map<TreeNode, string[]>()
  const visit = (node: TreeNode, path: string): void => {
    paths.set(node, [...(paths.get(node) ?? []), path])
    if (node.kind !== 'dir') return
    for (const [name, child] of node.children) visit(child, path === '' ? name : `${path}/${name}`)
  }
  visit(root, '')
  const expected = new Map<string, SeenEntry>()
  for (const [node, names] of paths) {
    for (const path of names) expected.set(path, expectedEntry(node, names.toSorted(), layers))
  }
  return expected
}

function expectedEntry(
  node: TreeNode,
  paths: readonly string[],
  layers: readonly TestLayer[],
): SeenEntry {
  const whiteout = device('char', 0, 0, { mode: 0, mtimeSec: 0 })
  const shown = node.kind === 'whiteout' ? whiteout : node
  const xattrs = [...shown.xattrs].map(([name, value]) => [
    name,
    Buffer.from(value).toString('hex'),
  ])
  if (shown.kind === 'dir' && shown.opaque) xattrs.push(['trusted.overlay.opaque', '79'])
  let size = 0
  if (shown.kind === 'reg') size = shown.size
  if (shown.kind === 'symlink') size = shown.target.length
  return {
    mode: `${typeDigits[shown.kind]}${shown.mode.toString(8).padStart(4, '0')}`,
    owner: `${shown.uid}:${shown.gid}`,
    size,
    mtime: (BigInt(shown.mtimeSec) * 1_000_000_000n + BigInt(shown.mtimeNsec)).toString(),
    ...(shown.kind === 'dir' ? {} : { links: paths.length }),
    ...(shown.kind === 'char' || shown.kind === 'block'
      ? { device: `${shown.major}:${shown.minor}` }
      : {}),
    ...(shown.kind === 'symlink' ? { target: shown.target } : {}),
    xattrs: Object.fromEntries(xattrs.toSorted(([a = ''], [b = '']) => (a < b ? -1 : 1))),
    ...(shown.kind === 'reg'
      ? { content: createHash('sha256').update(contentOf(shown, layers)).digest('hex') }
      : {}),
    ...(paths.length > 1 ? { linkedWith: paths } : {}),
  }
}
