import { expect, test } from 'vitest'
import { inheritImplied, mergeTrees } from '../../../snapshotter/erofs/merge-trees.ts'
import { mountFileSystem } from '../../../snapshotter/kernel/mount-file-system.ts'
import { DEPTH_MAX, type DirNode, type TreeNode } from '../../../snapshotter/toc/layer-tree.ts'
import { readTree, type SeenEntry, treeDifferences } from '../../support/read-tree.ts'
import { seeded } from '../../support/seeded.ts'
import { mountTree, Scratch } from './mounted-image.ts'
import { device, directory, expectedTree, fifo, file, symlink } from './tree-model.ts'

// The oracle is the kernel: each layer mounted by itself, overlayfs over all of them.
async function differencesToOverlay(
  trees: readonly DirNode[],
  layers: readonly Uint8Array[],
): Promise<string[]> {
  using scratch = new Scratch()
  const merged = await mountTree(scratch, mergeTrees(trees), layers)
  const lowers: string[] = []
  for (const [n, tree] of trees.entries()) {
    lowers.push((await mountTree(scratch, tree, layers.slice(n, n + 1))).target)
  }
  const target = scratch.mounted(scratch.folder())
  await mountFileSystem({
    type: 'overlay',
    target,
    options: [
      ['source', 'overlay'],
      ...lowers.toReversed().map((lower) => ['lowerdir+', lower] as const),
      ['lowerdir+', scratch.folder()], // Two at least are asked for.
    ],
    readOnly: true,
  })
  return treeDifferences(
    withoutLinkCounts(readTree(merged.target)),
    withoutLinkCounts(readTree(target)),
  )
}

/** Overlayfs shows how many names a file has in its layer, also those that are hidden; a merged image the visible ones. */
function withoutLinkCounts(tree: ReadonlyMap<string, SeenEntry>): Map<string, SeenEntry> {
  return new Map([...tree].map(([path, entry]) => [path, { ...entry, links: 0 }]))
}

test('a merged image shows what overlayfs shows of 2 to 8 random layers', async () => {
  for (let seed = 1; seed <= 25; seed++) {
    const random = seeded(seed)
    const layers = Array.from({ length: 2 + random(7) }, () =>
      new Uint8Array(8192).map(() => random(256)),
    )
    const trees = layers.map(() => randomTree(random))
    expect(await differencesToOverlay(trees, layers), `seed ${seed}`).toEqual([])
  }
}, 120_000)

test('files and directories replace each other through three layers as in overlayfs', async () => {
  const below = directory({
    a: directory({ old: file() }),
    b: file(),
    c: directory({ old: file() }),
  })
  const middle = directory({ a: file(), b: directory({ new: file() }), c: { kind: 'whiteout' } })
  const above = directory({ a: directory({ newest: file() }), b: symlink('a'), c: directory({}) })
  const layers = [0, 1, 2].map((n) => new Uint8Array(512).fill(n))
  expect(await differencesToOverlay([below, middle, above], layers)).toEqual([])
})

test('the input stays as it was, and hard links stay one node', () => {
  const shared = file({ size: 1, extents: [{ fileOffset: 0, layerOffset: 0, length: 1 }] })
  const below = directory({ kept: file(), gone: file() })
  const above = directory({ one: shared, two: shared, gone: { kind: 'whiteout' } })
  const merged = mergeTrees([below, above])
  expect([...merged.children.keys()].toSorted()).toEqual(['kept', 'one', 'two'])
  expect(merged.children.get('one')).toBe(merged.children.get('two'))
  expect(merged.children.get('one')).toEqual({ ...shared, layer: 1 })
  expect(shared.layer).toBe(0)
  expect([...below.children.keys()]).toEqual(['kept', 'gone'])
})

test('an opaque root hides all layers below, which overlayfs itself does not', async () => {
  const trees = [directory({ a: file() }), directory({ b: file() }, { opaque: true })]
  expect([...mergeTrees(trees).children.keys()]).toEqual(['b'])
  expect(await differencesToOverlay(trees, [new Uint8Array(0), new Uint8Array(0)])).toEqual([
    expect.stringContaining('"a": undefined should be') as string,
  ])
})

test('an implied directory takes the attributes of the layer below, as containerd makes it', () => {
  const tmp = directory({ old: file() }, { mode: 0o1777, uid: 7, mtimeSec: 9 })
  const below = directory({ tmp }, { mode: 0o711 })
  const above = directory(
    { tmp: directory({ new: file() }, { implied: true }), only: directory({}, { implied: true }) },
    { implied: true },
  )
  const merged = mergeTrees([below, above])
  expect(merged).toMatchObject({ mode: 0o711 })
  expect(merged.children.get('tmp')).toMatchObject({ mode: 0o1777, uid: 7, mtimeSec: 9 })
  expect(merged.children.get('only')).toMatchObject({ mode: 0o755, implied: true })

  const inherited = inheritImplied(above, mergeTrees([below]))
  expect(inherited).toMatchObject({ mode: 0o711, implied: false })
  expect(inherited.children.get('tmp')).toMatchObject({ mode: 0o1777, uid: 7, implied: false })
  expect([...(inherited.children.get('tmp') as DirNode).children.keys()]).toEqual(['new'])
  expect(above.children.get('tmp')).toMatchObject({ mode: 0o755, implied: true })
})

test('a tree that inherits nothing is given back as it is', () => {
  const tree = directory({ a: directory({ b: file() }), i: directory({}, { implied: true }) })
  expect(inheritImplied(tree, directory({ a: directory({ b: directory({}) }) }))).toBe(tree)
})

test('what is below an opaque directory or a whiteout is not inherited', () => {
  const below = directory({ d: directory({ e: directory({}, { mode: 0o700 }) }) })
  const opaque = directory({
    d: directory({ e: directory({}, { implied: true }) }, { opaque: true }),
  })
  expect(inheritImplied(opaque, below)).toBe(opaque)
  expect(mergeTrees([below, opaque]).children.get('d')).toMatchObject({
    children: new Map([['e', directory({}, { implied: true, mtimeSec: 1_700_000_000 })]]),
  })
})

test('random layers whose implied directories inherited show the same merged and under overlayfs', async () => {
  for (let seed = 100; seed < 110; seed++) {
    const random = seeded(seed)
    const layers = Array.from({ length: 4 }, () => new Uint8Array(8192).map(() => random(256)))
    const implied = layers.map(() => randomTree(random, { implied: true }))
    const trees = implied.map((tree, n) => inheritImplied(tree, mergeTrees(implied.slice(0, n))))
    expect(await differencesToOverlay(trees, layers), `seed ${seed}`).toEqual([])
    expect(expectedTree(mergeTrees(trees), layers), `seed ${seed}`).toEqual(
      expectedTree(mergeTrees(implied), layers),
    )
  }
}, 60_000)

test('trees as deep as they may be are merged', () => {
  const deep = (): DirNode => {
    let root = directory({ bottom: file() }, { implied: true })
    for (let level = 0; level < DEPTH_MAX; level++) root = directory({ d: root }, { implied: true })
    return root
  }
  const named = directory(deep().children, { mode: 0o700 })
  expect(mergeTrees([named, inheritImplied(deep(), named)]).mode).toBe(0o700)
})

const names = ['a', 'b', 'c', 'd', 'e', 'f']

/** A tree of few names, three levels deep, so that layers meet. */
function randomTree(
  random: (max: number) => number,
  { implied = false }: { implied?: boolean } = {},
): DirNode {
  const linked = file({
    uid: random(9),
    size: 5,
    extents: [{ fileOffset: 0, layerOffset: 0, length: 5 }],
  })
  const make = (depth: number): TreeNode => {
    const choice = random(depth === 0 ? 8 : 14)
    const attributes = {
      mode: random(0o1000),
      uid: random(3),
      mtimeSec: random(1_000_000),
      mtimeNsec: random(1_000_000_000),
      xattrs: new Map(random(3) === 0 ? [[`user.${random(3)}`, Buffer.of(random(256))]] : []),
    }
    if (choice === 0) return { kind: 'whiteout' }
    const noXattrs = { ...attributes, xattrs: new Map() } // user.* is for files and directories only.
    if (choice === 1) return device('char', 0, random(2), noXattrs)
    if (choice === 2) return symlink(`to-${random(5)}`, { ...noXattrs, mode: 0o777 })
    if (choice === 3) return fifo(noXattrs)
    if (choice === 4) return linked
    if (choice < 8) {
      const length = 1 + random(2000)
      const extents = [{ fileOffset: 0, layerOffset: 512 * random(8), length }]
      return file({ ...attributes, size: length, extents })
    }
    const isImplied = implied && random(2) === 0
    return directory(children(depth - 1), {
      ...(isImplied ? { implied: true, mtimeSec: 0 } : attributes),
      opaque: random(4) === 0,
    })
  }
  const children = (depth: number): Record<string, TreeNode> =>
    Object.fromEntries(
      names.filter(() => random(2) === 0).map((name) => [name, make(depth)] as const),
    )
  return directory(children(3), {
    mode: 0o700 + random(0o100),
    implied: implied && random(2) === 0,
  })
}
