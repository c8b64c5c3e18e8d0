import { createHash } from 'node:crypto'
import zlib from 'node:zlib'
import { beforeAll, describe, expect, test } from 'vitest'
import type { LayerIndex } from '../../../snapshotter/toc/layer-index.ts'
import { encodeLayerIndex, LAYER_INDEX_ANNOTATION } from '../../../snapshotter/toc/layer-index.ts'
import type { LayerToc, TocEntry } from '../../../snapshotter/toc/layer-toc.ts'
import { readLayerIndex } from '../../../snapshotter/toc/read-layer-toc.ts'
import { sameToc } from '../../../snapshotter/toc/same-toc.ts'
import { ZstdLayerMap } from '../../../snapshotter/toc/zstd-layer-map.ts'
import { randomTreeTar } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { writeWholeLayer } from '../../support/write-whole-layer.ts'

const map = new ZstdLayerMap([{ blobBytes: 700, layerBytes: 10_240 }], 1e9)
const dir: TocEntry = {
  path: 'd',
  kind: 'dir',
  mode: 0o755,
  uid: 0,
  gid: 0,
  mtimeSec: 0,
  mtimeNsec: 0,
  size: 0,
}
const file: TocEntry = {
  ...dir,
  path: 'd/f',
  kind: 'reg',
  size: 600,
  extents: [{ fileOffset: 0, layerOffset: 1024, length: 600 }],
}

/** Reads an index that the manifest vouches for, whatever it says. */
function read(index: Uint8Array, framesEnd = 700): Promise<LayerIndex | undefined> {
  const start = framesEnd + 8
  const digest = createHash('sha256').update(index).digest('hex')
  return readLayerIndex(
    { [LAYER_INDEX_ANNOTATION]: `${start}:${index.length}:${digest}` },
    async (range) => index.subarray(range.start - start, range.end - start),
    start + index.length + 200,
    new AbortController().signal,
  )
}

function encoded(...entries: TocEntry[]): Uint8Array {
  return encodeLayerIndex({ entries, layerSize: map.layerSize }, map)
}

test('an index comes back as it was written', async () => {
  const odd: TocEntry[] = [
    { ...dir, path: '' },
    {
      ...dir,
      mtimeSec: -7,
      mtimeNsec: 999_999_999,
      xattrs: new Map([['user.\xff', Buffer.from([0, 255])]]),
    },
    file,
    { ...dir, path: 'd/l', kind: 'symlink', linkTarget: '/\xff' },
    { ...dir, path: 'd/h', kind: 'hardlink', linkTarget: 'd/f' },
    { ...dir, path: 'z', kind: 'char', devMajor: 4095, devMinor: 1_048_575, uid: 4_294_967_294 },
    { ...file, path: 'hole', size: 1e12, extents: [] },
  ]
  const index = await read(encoded(...odd))
  expect(index?.toc.entries.map(({ path }) => path)).toEqual(odd.map(({ path }) => path))
  expect(index && sameToc(index.toc, { entries: odd, layerSize: 10_240 })).toBeUndefined()
})

test('a layer without the annotation has no index, and its blob is not read', async () => {
  const never = (): Promise<Uint8Array> => Promise.reject(new Error('the blob was read'))
  const { signal } = new AbortController()
  expect(await readLayerIndex({}, never, 1000, signal)).toBeUndefined()
})

describe('an annotation that cannot be true is refused before the blob is read', () => {
  const digest = 'a'.repeat(64)
  test.each([
    ['no position', 'nonsense', 'INVALID_ARGUMENT'],
    ['a negative offset', `-1:5:${digest}`, 'INVALID_ARGUMENT'],
    ['an end outside the blob', `900:101:${digest}`, 'INVALID_ARGUMENT'],
    ['a digest of another length', '8:5:abc', 'INVALID_ARGUMENT'],
  ])('%s', async (_, annotation, code) => {
    const never = (): Promise<Uint8Array> => Promise.reject(new Error('the blob was read'))
    const { signal } = new AbortController()
    const reading = readLayerIndex({ [LAYER_INDEX_ANNOTATION]: annotation }, never, 1000, signal)
    await expect(reading).rejects.toMatchObject({ code })
  })

  test('an index of a gigabyte', async () => {
    const never = (): Promise<Uint8Array> => Promise.reject(new Error('the blob was read'))
    const { signal } = new AbortController()
    const annotations = { [LAYER_INDEX_ANNOTATION]: `8:${2 ** 30}:${digest}` }
    const reading = readLayerIndex(annotations, never, 2 ** 40, signal)
    await expect(reading).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
  })
})

test('other bytes than the manifest promises are data loss', async () => {
  const index = encoded(dir)
  const annotations = { [LAYER_INDEX_ANNOTATION]: `708:${index.length}:${'0'.repeat(64)}` }
  const { signal } = new AbortController()
  const reading = readLayerIndex(annotations, async () => index, 10_000, signal)
  await expect(reading).rejects.toMatchObject({ code: 'DATA_LOSS' })
})

describe('an index that lies is refused', () => {
  const extent = (fileOffset: number, layerOffset: number, length: number): TocEntry => ({
    ...file,
    extents: [{ fileOffset, layerOffset, length }],
  })
  const lies: [title: string, entries: TocEntry[], sentence: RegExp][] = [
    [
      'an extent outside the layer',
      [extent(0, 10_000 - 272 - 0 + 512, 600)],
      /has an extent up to \d+ in a layer of 10240/,
    ],
    [
      'an extent beyond its file',
      [{ ...extent(0, 1024, 600), size: 599 }],
      /extent up to 600 in 599 bytes/,
    ],
    ['an extent off the grid of the tar', [extent(0, 1000, 512)], /off the tar's grid/],
    [
      'an extent off the grid of the file',
      [{ ...extent(100, 1024, 400), size: 600 }],
      /off the tar's grid/,
    ],
    ['a path that climbs out', [{ ...dir, path: 'a/../../b' }], /climbs out/],
    ['a path that is not clean', [{ ...dir, path: '/a//b/' }], /not clean/],
    [
      'a hard link that climbs out',
      [{ ...dir, kind: 'hardlink', linkTarget: '../x' }],
      /climbs out/,
    ],
    ['a file in place of the root', [{ ...file, path: '' }], /replaces the root/],
    ['a mode beyond 07777', [{ ...dir, mode: 0o100755 }], /mode 33261/],
    ['a user that Linux does not have', [{ ...dir, uid: 2 ** 32 - 1 }], /user ID 4294967295/],
    ['a second of two billion nanoseconds', [{ ...dir, mtimeNsec: 2e9 }], /nanoseconds 2000000000/],
    [
      'a device that Linux does not have',
      [{ ...dir, kind: 'block', devMajor: 4096, devMinor: 0 }],
      /device number 4096/,
    ],
    [
      'a symlink to nothing',
      [{ ...dir, kind: 'symlink', linkTarget: '' }],
      /without a usable target/,
    ],
    ['a name of 300 bytes', [{ ...dir, path: 'n'.repeat(300) }], /300 bytes long/],
  ]
  test.each(lies)('%s', async (_, entries, sentence) => {
    await expect(read(encoded(...entries))).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(sentence),
    })
  })

  test('extents of two files cannot overlap, since none starts before the last one ends', async () => {
    const overlapping = {
      ...file,
      path: 'e',
      extents: [{ fileOffset: 0, layerOffset: 1024, length: 512 }],
    }
    // A gap of −600 does not encode; what is read is far beyond the layer.
    await expect(read(encoded(file, overlapping))).rejects.toMatchObject({ name: 'LayerError' })
  })

  test('units that do not end where the index starts', async () => {
    await expect(read(encoded(dir), 701)).rejects.toThrow(
      /units cover 700 bytes of the blob, .* 701/,
    )
  })

  test('counts that the bytes cannot hold, and every truncation', async () => {
    const body = zlib.zstdDecompressSync(encoded(dir, file))
    for (let bytes = 0; bytes < body.length; bytes++) {
      const cut = zlib.zstdCompressSync(body.subarray(0, bytes))
      await expect(read(cut), `${bytes} bytes`).rejects.toMatchObject({ name: 'LayerError' })
    }
    const counted = Buffer.concat([body.subarray(0, 13), Buffer.from('ffffff01', 'hex')])
    await expect(read(zlib.zstdCompressSync(counted))).rejects.toThrow(/counts|ends/)
    const longer = zlib.zstdCompressSync(Buffer.concat([body, Buffer.alloc(1)]))
    await expect(read(longer)).rejects.toThrow(/1 bytes are left over/)
  })

  test('a bomb, and what is no index at all', async () => {
    const bomb = zlib.zstdCompressSync(Buffer.alloc(513 << 20))
    await expect(read(bomb)).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
    await expect(read(zlib.zstdCompressSync(Buffer.from('IPDRIDX9')))).rejects.toThrow(
      /another kind/,
    )
    await expect(read(Buffer.from('not zstd, anyone can see'))).rejects.toMatchObject({
      code: 'DATA_LOSS',
    })
  })

  test('paths that share much and unpack to gigabytes', async () => {
    const long = `${'n'.repeat(200)}/`.repeat(20)
    // The same path again and again: three bytes each in the index, 4,021 in memory.
    const entries = Array.from({ length: 70_000 }, () => ({ ...dir, path: `${long}n` }))
    const index = encoded(...entries)
    expect(index.length).toBeLessThan(100_000)
    await expect(read(index)).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
  })
})

describe('comparing tables of contents', () => {
  let toc: LayerToc
  beforeAll(async () => {
    toc = (await writeWholeLayer(randomTreeTar(seeded(4), 40))).written.toc
  })

  test.each<[string, Partial<TocEntry>, RegExp]>([
    ['another size', { size: 1 }, /^entry 7 ".*": size is \d+ here, 1 there$/],
    ['another mode', { mode: 0o1 }, /mode/],
    ['another owner', { gid: 9 }, /gid/],
    ['another time', { mtimeNsec: 3 }, /mtimeNsec/],
    ['another name', { path: 'x' }, /path/],
    ['an attribute more', { xattrs: new Map([['user.x', Buffer.of(1)]]) }, /attributes differ/],
    [
      'content from elsewhere',
      { extents: [{ fileOffset: 0, layerOffset: 0, length: 1 }] },
      /elsewhere/,
    ],
  ])('names %s', (_, change, difference) => {
    const entries = toc.entries.map((entry, index) =>
      index === 7 ? { ...entry, ...change } : entry,
    )
    expect(sameToc(toc, toc)).toBeUndefined()
    expect(sameToc(toc, { ...toc, entries })).toMatch(difference)
  })

  test('names an entry too many, too few, and another length of the layer', () => {
    const fewer = { ...toc, entries: toc.entries.slice(0, -1) }
    expect(sameToc(toc, fewer)).toMatch(/is here and not there/)
    expect(sameToc(fewer, toc)).toMatch(/is there and not here/)
    expect(sameToc(toc, { ...toc, layerSize: 1 })).toMatch(/layer has \d+ bytes here, 1 there/)
  })
})
