import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  ftruncateSync,
  lstatSync,
  openSync,
  readdirSync,
  readSync,
  statSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import {
  CHUNKS_MAX,
  filesToInline,
  INLINED_BYTES_MAX,
} from '../../../snapshotter/erofs/write-image.ts'
import type { DirNode, TreeNode } from '../../../snapshotter/toc/layer-tree.ts'
import { failureOf } from '../../support/failure-of.ts'
import { readTree, treeDifferences } from '../../support/read-tree.ts'
import { seeded } from '../../support/seeded.ts'
import { imageOf, mountTree, Scratch, type TestLayer } from './mounted-image.ts'
import { device, directory, expectedTree, fifo, file, symlink } from './tree-model.ts'

// The kernel is the judge: every tree is written, checked by fsck.erofs, mounted, and read back name by name.
async function mountedDifferences(
  root: DirNode,
  layers: readonly Uint8Array[] = [],
): Promise<string[]> {
  using scratch = new Scratch()
  const { target } = await mountTree(scratch, root, layers)
  return treeDifferences(readTree(target), expectedTree(root, layers))
}

test('an empty root directory is a whole image', async () => {
  expect(await mountedDifferences(directory({}, { mode: 0o1777, uid: 5, gid: 6 }))).toEqual([])
})

test('every kind of node keeps its name, mode, owner, time, links, device and attributes', async () => {
  const layer = noise(8192, 1)
  const hardLinked = file({
    size: 700,
    extents: [{ fileOffset: 0, layerOffset: 512, length: 700 }],
  })
  const linkedSymlink = symlink('hard/linked')
  expect(
    await mountedDifferences(
      directory({
        empty: file(),
        setuid: file({ mode: 0o4755, uid: 100_000, gid: 4_294_967_294 }),
        old: file({ mtimeSec: 0, mtimeNsec: 1 }),
        'before 1970': file({ mtimeSec: -12_345, mtimeNsec: 999_999_999 }),
        'after 2106': file({ mtimeSec: 5_000_000_000, mtimeNsec: 123_456_789 }),
        one: hardLinked,
        two: hardLinked,
        below: directory({ three: hardLinked, link: linkedSymlink }, { mode: 0o2750 }),
        link: linkedSymlink,
        tty: device('char', 5, 1, { mode: 0o620 }),
        wide: device('block', 4095, 1_048_575),
        loop: device('block', 7, 300),
        zero: device('char', 0, 0, { mode: 0o600 }),
        pipe: fifo({ mode: 0o666 }),
        gone: { kind: 'whiteout' },
        opaque: directory({ inside: file() }, { opaque: true }),
        'no permissions': directory({}, { mode: 0 }),
      }),
      [layer],
    ),
  ).toEqual([])
})

test('names may be any bytes but slash and zero, 255 of them, and sort around the dots', async () => {
  const names = ['\xff\xfe', '!', '+', '-', '...', '.a', ',', 'ä', '\x01', '\x80', 'a\nb', ' ']
  const longest = ['x'.repeat(255), '\xff'.repeat(255), `${'x'.repeat(254)}y`]
  expect(
    await mountedDifferences(
      directory(Object.fromEntries([...names, ...longest].map((name) => [name, file()]))),
    ),
  ).toEqual([])
})

test('symlinks hold targets from one byte to 4,095', async () => {
  const lengths = [1, 59, 60, 447, 448, 449, 511, 512, 513, 1024, 4095]
  expect(
    await mountedDifferences(
      directory(
        Object.fromEntries(lengths.map((length) => [`to-${length}`, symlink('t'.repeat(length))])),
      ),
    ),
  ).toEqual([])
})

test('attributes of all prefixes are kept, of any length up to 64 KiB', async () => {
  const xattrs = new Map<string, Uint8Array>([
    ['user.empty', new Uint8Array(0)],
    ['user.bytes', Buffer.from([0, 255, 10])],
    ['user.\xe4', Buffer.from('latin1 name')],
    [`user.${'n'.repeat(250)}`, Buffer.from('long name')],
    ['user.large', noise(65_535, 2)],
    ['trusted.of', Buffer.from('root')],
    ['security.capability', Buffer.from('0100000200200000000000000000000000000000', 'hex')],
  ])
  expect(
    await mountedDifferences(
      directory({
        both: file({ xattrs }),
        few: file({ xattrs: new Map([['user.a', Buffer.from('b')]]) }),
        dir: directory({ inner: file() }, { xattrs }),
        link: symlink('nowhere', { xattrs: new Map([['trusted.link', Buffer.from('x')]]) }),
        opaque: directory({}, { opaque: true, xattrs: new Map([['user.z', Buffer.from('z')]]) }),
      }),
    ),
  ).toEqual([])
})

test('an access control list is in force', async () => {
  // struct posix_acl_xattr_header and entries: user::rw-, user:1000:r--, group::r--, mask::r--, other::---
  const acl = Buffer.from(
    '0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000000ffffffff',
    'hex',
  )
  expect(
    await mountedDifferences(
      directory({
        guarded: file({ mode: 0o640, xattrs: new Map([['system.posix_acl_access', acl]]) }),
      }),
    ),
  ).toEqual([])
})

test('attributes that EROFS cannot hold are left out and counted', () => {
  const image = imageOf(
    directory({
      a: file({
        xattrs: new Map([
          ['com.apple.quarantine', Buffer.from('x')],
          ['user.', Buffer.from('no name')],
          ['user.huge', new Uint8Array(65_536)],
          ['user.kept', Buffer.from('x')],
        ]),
      }),
      b: file({
        xattrs: new Map([1, 2, 3, 4, 5].map((n) => [`user.${n}`, new Uint8Array(65_535)] as const)),
      }),
    }),
  )
  expect(image.droppedXattrs).toBe(3 + 2)
})

test('content comes from the layer wherever tar put it', async () => {
  const layer = noise(64 * 512, 3)
  const run = (record: number, length: number) =>
    file({ size: length, extents: [{ fileOffset: 0, layerOffset: record * 512, length }] })
  expect(
    await mountedDifferences(
      directory({
        first: run(0, 512),
        short: run(1, 1),
        'one over': run(2, 513),
        page: run(5, 4096),
        unaligned: run(13, 9999),
        'to the end': run(60, 2048),
        again: run(5, 4096),
      }),
      [layer],
    ),
  ).toEqual([])
})

test('sparse files have their holes and their data in place', async () => {
  const layer = noise(256 * 512, 5)
  const sparse = (size: number, ...extents: [at: number, record: number, length: number][]) =>
    file({
      size,
      extents: extents.map(([fileOffset, record, length]) => ({
        fileOffset,
        layerOffset: record * 512,
        length,
      })),
    })
  expect(
    await mountedDifferences(
      directory({
        'all hole': sparse(1_000_000),
        'one byte of hole': sparse(1),
        'hole first': sparse(8192, [4096, 0, 4096]),
        'hole last': sparse(100_000, [0, 1, 512]),
        'hole between': sparse(20_480, [0, 3, 4096], [16_384, 20, 4096]),
        'out of order in the layer': sparse(2048, [0, 9, 1024], [1024, 4, 1024]),
        'short end': sparse(5000, [4608, 30, 392]),
        'fine grain': sparse(50 * 512, ...everySecond(25)),
        joined: sparse(3072, [0, 60, 1024], [1024, 62, 2048]),
        'empty extent': sparse(512, [0, 70, 512], [512, 1, 0]),
      }),
      [layer],
    ),
  ).toEqual([])
})

test('content that no whole blocks of the layer hold is copied into the image', async () => {
  const layer = noise(64 * 512, 6)
  const root = directory({
    shifted: file({ size: 1000, extents: [{ fileOffset: 0, layerOffset: 100, length: 1000 }] }),
    'odd start': file({
      size: 2000,
      extents: [{ fileOffset: 700, layerOffset: 512, length: 1300 }],
    }),
    'odd end before a hole': file({
      size: 4096,
      extents: [{ fileOffset: 0, layerOffset: 512, length: 513 }],
    }),
    plain: file({ size: 100, extents: [{ fileOffset: 0, layerOffset: 512, length: 100 }] }),
  })
  expect(filesToInline(root)).toHaveLength(3)
  expect(await mountedDifferences(root, [layer])).toEqual([])
})

test('directories hold 3,000 and 100,000 names, and every one is found', async () => {
  const random = seeded(8)
  const [middle, large] = [new Map<string, TreeNode>(), new Map<string, TreeNode>()]
  while (middle.size < 3000) middle.set('m'.repeat(1 + random(200)) + random(1_000_000), file())
  while (large.size < 100_000) large.set(`entry-${random(1_000_000_000)}`, symlink('same'))
  using scratch = new Scratch()
  const { target } = await mountTree(
    scratch,
    directory({ middle: directory(middle), large: directory(large) }),
  )
  const seen = readTree(join(target, 'middle'))
  expect(treeDifferences(seen, expectedTree(directory(middle)))).toEqual([])
  expect(new Set(readdirSync(join(target, 'large')))).toEqual(new Set(large.keys()))
  // Reading a directory and searching it are different code in the kernel.
  const missing = [...large.keys()].filter(
    (name) => lstatSync(join(target, 'large', name), { throwIfNoEntry: false }) === undefined,
  )
  expect(missing).toEqual([])
  expect(existsSync(join(target, 'large', 'entry-'))).toBe(false)
}, 60_000)

test('directories of any length of names are searched right at every block boundary', async () => {
  const random = seeded(9)
  for (let round = 0; round < 5; round++) {
    const children = new Map<string, TreeNode>()
    const count = 1 + random(60)
    while (children.size < count) children.set(randomName(random), fifo())
    expect(await mountedDifferences(directory({ d: directory(children) }))).toEqual([])
  }
})

test('a directory 2,000 levels deep is written and mounted', async () => {
  let root = directory({ bottom: file() })
  for (let level = 0; level < 2000; level++) root = directory({ d: root })
  using scratch = new Scratch()
  const { target } = await mountTree(scratch, root)
  expect(statSync(`${target}/${'d/'.repeat(1000)}`).isDirectory()).toBe(true)
})

test('a file of 6 GiB is read from its layer, and a sparse one of 3 TiB has its last byte', async () => {
  using scratch = new Scratch()
  const [gib, tib] = [2 ** 30, 2 ** 40]
  const layer: TestLayer = { path: scratch.file(new Uint8Array(0)), bytes: 7 * gib }
  const marks = [512, 4 * gib + 512, 6 * gib + 512 - 16]
  const writer = openSync(layer.path, 'r+')
  ftruncateSync(writer, layer.bytes)
  for (const mark of marks) writeSync(writer, Buffer.from(`byte ${mark}`.padEnd(16)), 0, 16, mark)
  closeSync(writer)
  const { target } = await mountTree(scratch, directory({ sparse: file({ size: 3 * tib }) }))
  expect(statSync(join(target, 'sparse')).size).toBe(3 * tib)
  expect(readAt(join(target, 'sparse'), 3 * tib - 16)).toBe('\0'.repeat(16))

  const large = file({
    size: 6 * gib,
    extents: [{ fileOffset: 0, layerOffset: 512, length: 6 * gib }],
  })
  const wide = file({
    size: 2 * tib,
    extents: [{ fileOffset: tib, layerOffset: 4 * gib, length: 2 ** 20 }],
  })
  const image = await mountTree(scratch, directory({ large, wide }), [layer], {
    fsckContent: false,
  })
  expect(statSync(join(image.target, 'large')).size).toBe(6 * gib)
  for (const mark of marks) {
    expect(readAt(join(image.target, 'large'), mark - 512)).toBe(`byte ${mark}`.padEnd(16))
  }
  expect(readAt(join(image.target, 'wide'), tib + 512)).toBe(`byte ${4 * gib + 512}`.padEnd(16))
  expect(readAt(join(image.target, 'wide'), tib - 16)).toBe('\0'.repeat(16))
})

test('one image takes its content from 100 layers', async () => {
  const layers = Array.from({ length: 100 }, (_, n) => noise(512 * (2 + (n % 5)), n))
  const children: Record<string, TreeNode> = {}
  for (let layer = 0; layer < layers.length; layer++) {
    children[`run-${layer}`] = file({
      layer,
      size: 600,
      extents: [{ fileOffset: 0, layerOffset: 0, length: 600 }],
    })
    children[`sparse-${layer}`] = file({
      layer,
      size: 2048,
      extents: [{ fileOffset: 1024, layerOffset: 512, length: 512 }],
    })
  }
  expect(await mountedDifferences(directory(children), layers)).toEqual([])
})

test('equal trees give equal bytes, in whatever order their names came', () => {
  const children = { b: file(), a: symlink('b'), c: directory({ d: file() }) }
  const turned = Object.fromEntries(Object.entries(children).toReversed())
  const digest = (root: DirNode) => createHash('sha256').update(imageOf(root).bytes).digest('hex')
  expect(digest(directory(turned))).toBe(digest(directory(children)))
  expect(digest(directory({ ...children, e: file() }))).not.toBe(digest(directory(children)))
})

test('content beyond the end of its layer is refused: another layer lies there', async () => {
  const layers = [new Uint8Array(1024), noise(1024, 1)]
  const liar = (layerOffset: number, length: number) =>
    directory({
      liar: file({ size: length, extents: [{ fileOffset: 0, layerOffset, length }] }),
    })
  expect(await failureOf(() => imageOf(liar(512, 1024), layers))).toEqual({
    name: 'LayerError',
    code: 'INVALID_ARGUMENT',
    message: "a file's content fills records up to 1536 of layer 0, which is 1024 bytes long",
  })
  expect(imageOf(liar(512, 512), layers).inodes).toBe(2)
})

test('content in a record that its layer holds only in part is refused: it could not be read', async () => {
  const root = directory({
    tail: file({ size: 10, extents: [{ fileOffset: 0, layerOffset: 512, length: 10 }] }),
  })
  expect(await failureOf(() => imageOf(root, [new Uint8Array(600)]))).toMatchObject({
    code: 'INVALID_ARGUMENT',
  })
})

test('holes that are too fine for a file of their size are refused', async () => {
  const size = (CHUNKS_MAX + 1) * 512
  const root = directory({
    comb: file({ size, extents: [{ fileOffset: 512, layerOffset: 0, length: 512 }] }),
  })
  expect(await failureOf(() => imageOf(root, [new Uint8Array(512)]))).toMatchObject({
    code: 'RESOURCE_EXHAUSTED',
    message: expect.stringContaining('the holes are too fine') as string,
  })
})

test('more content to copy than an image may hold is refused before it is gathered', async () => {
  const root = directory({
    a: file({
      size: INLINED_BYTES_MAX + 1,
      extents: [{ fileOffset: 0, layerOffset: 1, length: INLINED_BYTES_MAX + 1 }],
    }),
  })
  expect(await failureOf(() => filesToInline(root))).toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
})

test('layers of more than 2 TiB together are refused, for blocks have 32-bit numbers', async () => {
  const layers = [1, 2, 3].map(() => ({ path: 'not read', bytes: 2 ** 40 }))
  expect(await failureOf(() => imageOf(directory({}), layers))).toMatchObject({
    code: 'RESOURCE_EXHAUSTED',
    message: expect.stringContaining('mount them apart') as string,
  })
})

function noise(length: number, seed: number): Uint8Array {
  const random = seeded(seed)
  return new Uint8Array(length).map(() => random(256))
}

/** Extents for every second of `count` pairs of records. */
function everySecond(count: number): [at: number, record: number, length: number][] {
  return Array.from({ length: count }, (_, n) => [n * 1024, 100 + n, 512])
}

function randomName(random: (max: number) => number): string {
  const bytes = Array.from({ length: 1 + random(255) }, () => 1 + random(255))
  const name = String.fromCharCode(...bytes).replaceAll('/', '_')
  return name === '.' || name === '..' ? 'dots' : name
}

function readAt(path: string, position: number): string {
  const opened = openSync(path, 'r')
  try {
    const buffer = Buffer.alloc(16)
    readSync(opened, buffer, 0, 16, position)
    return buffer.toString('latin1')
  } finally {
    closeSync(opened)
  }
}
