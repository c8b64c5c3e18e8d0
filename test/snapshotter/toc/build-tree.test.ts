import { describe, expect, test } from 'vitest'
import { buildTree, NODES_MAX } from '../../../snapshotter/toc/build-tree.ts'
import type { EntryKind, TocEntry } from '../../../snapshotter/toc/layer-toc.ts'
import {
  DEPTH_MAX,
  type DirNode,
  isWhiteout,
  type TreeNode,
} from '../../../snapshotter/toc/layer-tree.ts'
import { failureOf } from '../../support/failure-of.ts'

function entry(kind: EntryKind, path: string, overrides: Partial<TocEntry> = {}): TocEntry {
  return {
    path,
    kind,
    mode: kind === 'dir' ? 0o755 : 0o644,
    uid: 0,
    gid: 0,
    mtimeSec: 1000,
    mtimeNsec: 0,
    size: 0,
    ...overrides,
  }
}
const dir = (path: string, overrides?: Partial<TocEntry>) => entry('dir', path, overrides)
const reg = (path: string, overrides?: Partial<TocEntry>) => entry('reg', path, overrides)
const link = (path: string, linkTarget: string, overrides?: Partial<TocEntry>) =>
  entry('hardlink', path, { linkTarget, ...overrides })
const symlink = (path: string, linkTarget: string) => entry('symlink', path, { linkTarget })

function tree(...entries: TocEntry[]): DirNode {
  return buildTree({ entries, layerSize: 0 })
}

function at(root: DirNode, path: string): TreeNode {
  let node: TreeNode = root
  for (const name of path.split('/')) {
    const child: TreeNode | undefined = node.kind === 'dir' ? node.children.get(name) : undefined
    if (child === undefined) throw new Error(`${path} is not in the tree`)
    node = child
  }
  return node
}

/** Every path with its kind; directories end in a slash, and say what is special about them. */
function outline(root: DirNode): string[] {
  const lines: string[] = []
  const visit = (node: DirNode, prefix: string): void => {
    for (const [name, child] of node.children) {
      if (child.kind === 'dir') {
        const marks = `${child.implied ? ' implied' : ''}${child.opaque ? ' opaque' : ''}`
        lines.push(`${prefix}${name}/${marks}`)
        visit(child, `${prefix}${name}/`)
      } else {
        lines.push(`${prefix}${name} ${child.kind}`)
      }
    }
  }
  visit(root, '')
  return lines.toSorted()
}

async function problemOf(...entries: TocEntry[]): Promise<string> {
  const { name, code, message } = await failureOf(() => tree(...entries))
  expect({ name, code }).toEqual({ name: 'LayerError', code: 'INVALID_ARGUMENT' })
  return message
}

describe('attributes', () => {
  test('a node has what its header says', () => {
    const xattrs = new Map([['user.a', Buffer.from('b')]])
    const extents = [{ fileOffset: 0, layerOffset: 512, length: 3 }]
    const root = tree(
      reg('f', {
        mode: 0o4711,
        uid: 70_000,
        gid: 8,
        mtimeSec: 5,
        mtimeNsec: 6,
        xattrs,
        size: 3,
        extents,
      }),
      entry('char', 'c', { devMajor: 4, devMinor: 70_000 }),
      entry('fifo', 'p'),
      symlink('s', '../up'),
    )
    expect(at(root, 'f')).toEqual({
      kind: 'reg',
      mode: 0o4711,
      uid: 70_000,
      gid: 8,
      mtimeSec: 5,
      mtimeNsec: 6,
      xattrs,
      size: 3,
      layer: 0,
      extents,
    })
    expect(at(root, 'c')).toMatchObject({ kind: 'char', major: 4, minor: 70_000 })
    expect(at(root, 'p')).toMatchObject({ kind: 'fifo' })
    expect(at(root, 's')).toMatchObject({ kind: 'symlink', target: '../up', mode: 0o777 })
  })

  test('the root is 0755 unless the tar names it', () => {
    expect(tree()).toMatchObject({ mode: 0o755, uid: 0, mtimeSec: 0, implied: true })
    expect(tree(dir('', { mode: 0o700, uid: 9 }))).toMatchObject({
      mode: 0o700,
      uid: 9,
      implied: false,
    })
  })

  test('a time before 1970 or after 2262 becomes 1970, as in containerd', () => {
    const root = tree(
      reg('before', { mtimeSec: -1, mtimeNsec: 5 }),
      reg('after', { mtimeSec: 9_223_372_037 }),
      reg('last', { mtimeSec: 9_223_372_036, mtimeNsec: 7 }),
    )
    expect(at(root, 'before')).toMatchObject({ mtimeSec: 0, mtimeNsec: 0 })
    expect(at(root, 'after')).toMatchObject({ mtimeSec: 0, mtimeNsec: 0 })
    expect(at(root, 'last')).toMatchObject({ mtimeSec: 9_223_372_036, mtimeNsec: 7 })
  })

  test("an administrator's attributes are not content, but overlayfs' opaque mark counts", () => {
    const mark = (value: string) =>
      new Map([
        ['trusted.overlay.opaque', Buffer.from(value)],
        ['trusted.overlay.redirect', Buffer.from('/etc')],
        ['trusted.note', Buffer.from('x')],
        ['user.kept', Buffer.from('x')],
      ])
    const root = tree(dir('y', { xattrs: mark('y') }), dir('n', { xattrs: mark('n') }))
    expect(outline(root)).toEqual(['n/', 'y/ opaque'])
    expect([...(at(root, 'y') as DirNode).xattrs.keys()]).toEqual(['user.kept'])
  })

  test('an owner that chown(2) does not take is refused', async () => {
    expect(await problemOf(reg('a/b', { uid: 4_294_967_295 }))).toBe(
      'layer entry a/b belongs to 4294967295:0, owners go up to 4294967294',
    )
  })

  test('a device number that Linux does not have is refused', async () => {
    expect(await problemOf(entry('block', 'd', { devMajor: 4096, devMinor: 1 }))).toContain(
      '4096:1',
    )
  })
})

describe('duplicates and parents', () => {
  test('parents that the tar never names are made and marked', () => {
    const root = tree(reg('a/b/c'), dir('a'))
    expect(outline(root)).toEqual(['a/', 'a/b/ implied', 'a/b/c reg'])
    expect(at(root, 'a/b')).toMatchObject({ mode: 0o755, uid: 0, gid: 0, mtimeSec: 0 })
  })

  test('a directory named twice keeps its children and takes the later attributes', () => {
    const root = tree(
      dir('a', { xattrs: new Map([['user.one', Buffer.from('1')]]) }),
      reg('a/f'),
      dir('a', { mode: 0o700, xattrs: new Map([['user.two', Buffer.from('2')]]) }),
    )
    expect(outline(root)).toEqual(['a/', 'a/f reg'])
    expect(at(root, 'a')).toMatchObject({ mode: 0o700 })
    expect([...(at(root, 'a') as DirNode).xattrs.keys()]).toEqual(['user.one', 'user.two'])
  })

  test('whatever else is named twice is replaced, a directory with all below it', () => {
    expect(outline(tree(dir('a'), reg('a/f'), symlink('a', 'x')))).toEqual(['a symlink'])
    expect(outline(tree(reg('a'), dir('a'), reg('a/f')))).toEqual(['a/', 'a/f reg'])
    expect(at(tree(reg('a', { size: 1 }), reg('a', { size: 2 })), 'a')).toMatchObject({ size: 2 })
  })

  test('after a replacement the next path is looked up anew', () => {
    const root = tree(dir('a'), reg('a/one'), reg('a'), dir('a'), reg('a/two'))
    expect(outline(root)).toEqual(['a/', 'a/two reg'])
  })

  test('a path below a file is refused', async () => {
    expect(await problemOf(reg('a'), reg('a/b'))).toBe(
      'layer entry a/b lies below a, which is not a directory but a reg',
    )
  })

  test('names of up to 255 bytes are taken, longer ones refused', async () => {
    const longest = 'n'.repeat(255)
    expect(outline(tree(reg(`${longest}/${longest}`)))).toHaveLength(2)
    expect(await problemOf(reg(`${longest}n`))).toContain('has a name of 256 bytes')
    expect(await problemOf(reg(`${longest}n/a`))).toContain('has a directory name of 256 bytes')
  })
})

describe('symlinks on the way', () => {
  test('a path leads through symlinks of its own layer', () => {
    const root = tree(
      dir('usr/lib'),
      symlink('lib', 'usr/lib'),
      reg('lib/a'),
      symlink('abs', '/usr/lib'),
      reg('abs/b'),
      symlink('usr/up', '../lib/deep'),
      reg('usr/up/c'),
    )
    expect(outline(root)).toEqual([
      'abs symlink',
      'lib symlink',
      'usr/ implied',
      'usr/lib/',
      'usr/lib/a reg',
      'usr/lib/b reg',
      'usr/lib/deep/ implied',
      'usr/lib/deep/c reg',
      'usr/up symlink',
    ])
  })

  test('no symlink leads out of the root', () => {
    const root = tree(
      symlink('out', '../../../../etc'),
      reg('out/passwd'),
      symlink('root', '/..'),
      reg('root/f'),
    )
    expect(outline(root)).toEqual([
      'etc/ implied',
      'etc/passwd reg',
      'f reg',
      'out symlink',
      'root symlink',
    ])
  })

  test('a symlink itself is replaced, not followed, by an entry of its name', () => {
    expect(outline(tree(dir('d'), symlink('l', 'd'), dir('l'), reg('l/f')))).toEqual([
      'd/',
      'l/',
      'l/f reg',
    ])
  })

  test('symlinks in a circle are refused, and a chain beyond what Linux follows', async () => {
    expect(await problemOf(symlink('a', 'b'), symlink('b', 'a'), reg('a/f'))).toBe(
      'layer entry a/f leads through more than 40 symlinks',
    )
    const chain = (length: number) => [
      dir('0'),
      ...Array.from({ length }, (_, n) => symlink(`${n + 1}`, `${n}`)),
      reg(`${length}/f`),
    ]
    expect(at(tree(...chain(40)), '0/f').kind).toBe('reg')
    expect(await problemOf(...chain(41))).toContain('more than 40 symlinks')
  })

  test('a target must be 1 to 4,095 bytes', async () => {
    expect(outline(tree(symlink('s', 't'.repeat(4095))))).toEqual(['s symlink'])
    expect(await problemOf(symlink('s', 't'.repeat(4096)))).toContain('4096 bytes')
    expect(await problemOf(symlink('s', ''))).toContain('0 bytes')
  })

  test('directories nest 2,048 deep, not deeper, however symlinks help', async () => {
    const deep = 'd/'.repeat(1500)
    expect(await problemOf(reg(`${deep}f`), symlink('s', deep), reg(`s/${deep}f`))).toContain(
      `more than ${DEPTH_MAX} directories deep`,
    )
  })
})

describe('hard links', () => {
  test('two names share one node, and the later header applies to it', () => {
    const root = tree(
      reg('a', { size: 7, mode: 0o600, xattrs: new Map([['user.a', Buffer.from('1')]]) }),
      link('b/c', 'a', { mode: 0o640, uid: 3, xattrs: new Map([['user.b', Buffer.from('2')]]) }),
    )
    expect(at(root, 'a')).toBe(at(root, 'b/c'))
    expect(at(root, 'a')).toMatchObject({ kind: 'reg', size: 7, mode: 0o640, uid: 3 })
    expect([...(at(root, 'a') as DirNode).xattrs.keys()]).toEqual(['user.a', 'user.b'])
  })

  test('the target is found through symlinks, and may be one', () => {
    const root = tree(dir('d'), symlink('d/s', 'x'), symlink('l', 'd'), link('h', 'l/s'))
    expect(at(root, 'h')).toBe(at(root, 'd/s'))
    expect(at(root, 'h')).toMatchObject({ kind: 'symlink', mode: 0o777 })
  })

  test('replacing one name leaves the other', () => {
    const root = tree(reg('a', { size: 1 }), link('b', 'a'), reg('a', { size: 2 }))
    expect(at(root, 'b')).toMatchObject({ size: 1 })
    expect(at(root, 'a')).toMatchObject({ size: 2 })
  })

  test('a target that is missing, comes later, is a whiteout, a directory or the link itself is refused', async () => {
    const missing = 'layer entry b is a hard link to a, which is not in the layer before it'
    expect(await problemOf(link('b', 'a'))).toBe(missing)
    expect(await problemOf(link('b', 'a'), reg('a'))).toBe(missing)
    expect(await problemOf(reg('.wh.a'), link('b', 'a'))).toBe(missing)
    expect(await problemOf(reg('b'), link('b', 'b'))).toContain('not in the layer')
    expect(await problemOf(link('b', 'no/such/a'))).toContain('not in the layer')
    expect(await problemOf(dir('a'), link('b', 'a'))).toBe(
      'layer entry b is a hard link to the directory a',
    )
  })
})

describe('whiteouts', () => {
  test('.wh.NAME removes NAME of lower layers, .wh..wh..opq all names', () => {
    const root = tree(reg('.wh.a'), reg('d/.wh.b'), dir('e'), reg('e/.wh..wh..opq'), reg('e/own'))
    expect(outline(root)).toEqual([
      'a whiteout',
      'd/ implied',
      'd/b whiteout',
      'e/ opaque',
      'e/own reg',
    ])
    expect(tree(reg('.wh..wh..opq')).opaque).toBe(true)
  })

  test('a whiteout never removes an entry of its own layer, before or after it', () => {
    expect(outline(tree(reg('.wh.a'), reg('a')))).toEqual(['a reg'])
    expect(outline(tree(reg('a'), reg('.wh.a')))).toEqual(['a reg'])
  })

  test('a directory beside its own whiteout is opaque, before or after it, named or implied', () => {
    expect(outline(tree(reg('.wh.a'), dir('a')))).toEqual(['a/ opaque'])
    expect(outline(tree(dir('a'), reg('.wh.a')))).toEqual(['a/ opaque'])
    expect(outline(tree(reg('.wh.a'), reg('a/f')))).toEqual(['a/ implied opaque', 'a/f reg'])
  })

  test('a whiteout of no name is refused', async () => {
    for (const name of ['.wh.', '.wh..', '.wh...', 'd/.wh.']) {
      expect(await problemOf(reg(name))).toBe(`layer entry ${name} is a whiteout of no name`)
    }
  })

  test("aufs's own files are left out, with all below them", () => {
    expect(
      outline(tree(dir('.wh..wh.plnk'), reg('.wh..wh.plnk/1.2'), reg('a/.wh..wh.aufs'))),
    ).toEqual([])
  })

  test('a character device 0:0 stays what it is, and is a whiteout to overlayfs', () => {
    const root = tree(entry('char', 'a', { devMajor: 0, devMinor: 0 }))
    expect(at(root, 'a')).toMatchObject({ kind: 'char', major: 0, minor: 0 })
    expect(isWhiteout(at(root, 'a'))).toBe(true)
    expect(isWhiteout(at(tree(entry('char', 'n', { devMajor: 1, devMinor: 3 })), 'n'))).toBe(false)
  })
})

test('a layer of more nodes than there is memory for is refused, also if its directories are only implied', async () => {
  const names = Array.from({ length: 2000 }, (_, n) => n.toString(36)).join('/')
  const entries = Array.from({ length: Math.ceil(NODES_MAX / 2000) }, (_, n) =>
    reg(`x${n}/${names}`),
  )
  expect(await failureOf(() => tree(...entries))).toMatchObject({
    name: 'LayerError',
    code: 'RESOURCE_EXHAUSTED',
  })
}, 60_000)
