import { describe, expect, test } from 'vitest'
import { LayerError } from '../../../../snapshotter/errors.ts'
import { readLayerMap } from '../../../../snapshotter/layers/read-layer-map.ts'
import { ChunkLayerMap } from '../../../../snapshotter/toc/chunked/chunk-layer-map.ts'
import { estargzLayer } from '../../../../snapshotter/toc/estargz/estargz-layer.ts'
import { fetchEstargzToc } from '../../../../snapshotter/toc/estargz/fetch-estargz-toc.ts'
import { sameEstargzToc } from '../../../../snapshotter/toc/estargz/same-estargz-toc.ts'
import type { LayerToc } from '../../../../snapshotter/toc/layer-toc.ts'
import { TarStreamWalk } from '../../../../snapshotter/toc/walk-tar.ts'
import { failureOf } from '../../../support/failure-of.ts'
import { makeTar, paxPart } from '../../../support/make-tar.ts'
import { randomContent, randomTreeTar } from '../../../support/random-tree-tar.ts'
import { seeded } from '../../../support/seeded.ts'
import { type EstargzLine, writeEstargz } from '../../../support/write-estargz.ts'
import { stargzLayers } from './golden/stargz-layers.ts'

const { signal } = new AbortController()
const LEAF_BYTES = 4096

type Layer = {
  readonly blob: Uint8Array
  readonly annotations?: Readonly<Record<string, string>>
}
type Range = { start: number; end: number }
type Arranged = { readonly toc: LayerToc; readonly map: ChunkLayerMap }

async function arrange(
  { blob, annotations = {} }: Layer,
  read: Range[] = [],
): Promise<Arranged | undefined> {
  const readBlob = async (range: Range): Promise<Uint8Array> => {
    read.push(range)
    return blob.subarray(range.start, range.end)
  }
  const table = await fetchEstargzToc(annotations, readBlob, blob.length, signal)
  const leaves = Math.ceil(blob.length / LEAF_BYTES)
  const leafStarts = Float64Array.from({ length: leaves + 1 }, (_, leaf) =>
    Math.min(leaf * LEAF_BYTES, blob.length),
  )
  return table && estargzLayer(table, { size: blob.length, leafStarts })
}

/** The layer file, unit by unit, and the tar as it is put together from it. */
async function decodeAll(map: ChunkLayerMap, blob: Uint8Array) {
  const [layer, tar]: [Uint8Array[], Uint8Array[]] = [[], []]
  const [layerStarts, tarStarts]: [number[], number[]] = [[], []]
  let tarAt = 0
  for (let unit = 0; unit + 1 < map.starts.length; unit++) {
    const { start, end } = map.blobRange(unit)
    const bytes = await map.decode(unit, blob.subarray(start, end))
    layer.push(bytes)
    for (const part of map.tarParts(unit, bytes)) {
      layerStarts.push(part.layerStart)
      tarStarts.push(tarAt)
      tarAt += part.bytes.length
      tar.push(part.bytes)
    }
  }
  const arrangement = { layerStarts, tarStarts }
  return { layer: Buffer.concat(layer), tar: Buffer.concat(tar), arrangement }
}

function walk(tar: Uint8Array): LayerToc {
  const walk = new TarStreamWalk()
  walk.push(tar)
  return walk.end()
}

/** What the layer's table gets wrong: its entries, the bytes of the tar, those of a file, or what comes back from the disk. */
async function faults(layer: Layer, tar: Buffer): Promise<string[]> {
  const arranged = await arrange(layer)
  if (arranged === undefined) return ['the layer has no table']
  const { toc, map } = arranged
  const stored = readLayerMap(map.toBytes())
  if (!(stored instanceof ChunkLayerMap)) return ['its map comes back as another']
  const decoded = await decodeAll(map, layer.blob)
  const walked = walk(tar)
  const contents = (from: Buffer, { entries }: LayerToc): Map<string, string> =>
    new Map(
      entries.flatMap(({ path, extents = [] }) =>
        extents.map(({ layerOffset, length }): [string, string] => [
          path,
          from.toString('latin1', layerOffset, layerOffset + length),
        ]),
      ),
    )
  const there = contents(tar, walked)
  const differing = [...contents(decoded.layer, toc)].filter(
    ([path, bytes]) => bytes !== there.get(path),
  )
  const isSameStored = (await decodeAll(stored, layer.blob)).layer.equals(decoded.layer)
  return [
    sameEstargzToc(walked, toc, decoded.arrangement) ?? '',
    decoded.tar.equals(tar) ? '' : 'the tar differs',
    isSameStored ? '' : 'its bytes differ after a restart',
    ...differing.map(([path]) => `${path} has other bytes`),
  ].filter(Boolean)
}

describe('a layer that stargz-snapshotter wrote', () => {
  test.each(['plain', 'prioritized'] as const)(
    'gives every odd entry and every byte of its tar (%s)',
    async (name) => {
      const { blob, annotations, tar } = stargzLayers[name]
      expect(await faults({ blob, annotations }, tar)).toEqual([])
      expect(await faults({ blob }, tar)).toEqual([])
    },
  )

  test('is known by its footer and its table, and nothing else of it is read', async () => {
    const { blob, annotations } = stargzLayers.plain
    const read: Range[] = []
    const arranged = await arrange({ blob, annotations }, read)
    const map = arranged?.map
    const unit = (map?.starts.length ?? 0) - 2
    expect(read).toHaveLength(2)
    expect(read[0]).toEqual({ start: blob.length - 51, end: blob.length })
    expect(read[1]?.start).toBeGreaterThanOrEqual(map?.blobRange(unit).start ?? Number.NaN)
  })

  test('shows neither its table nor its landmarks', async () => {
    for (const { blob, tar } of Object.values(stargzLayers)) {
      const shown = (await arrange({ blob }))?.toc.entries.map(({ path }) => path) ?? []
      expect(shown.filter((path) => /landmark|stargz/.test(path))).toEqual([])
      expect(shown).toHaveLength(walk(tar).entries.length - 2)
    }
  })
})

test.each([1, 2, 3])('a random tree (seed %i) comes back as its tar has it', async (seed) => {
  const random = seeded(seed)
  const layer = writeEstargz(randomTreeTar(random, 250), { chunkBytes: 30_000 + random(50_000) })
  expect(await faults(layer, layer.tar)).toEqual([])
  expect(await faults({ blob: layer.blob }, layer.tar)).toEqual([])
})

test('a layer of no files, and one whose headers are as long as they get, come back too', async () => {
  const value = 'v'.repeat(60_000)
  const long = 'n/'.repeat(1500)
  const tars = [
    makeTar(),
    makeTar({ name: 'd/', typeflag: '5' }, { name: 'empty' }),
    makeTar(
      paxPart([
        ['path', long],
        ['SCHILY.xattr.user.long', value],
        ['comment', 'c'.repeat(900)],
      ]),
      { name: 'd', typeflag: '5' },
      paxPart([
        ['path', `${long}f`],
        ['SCHILY.xattr.user.long', value],
        ['atime', '1.5'],
      ]),
      { name: 'f', content: 'x' },
    ),
  ]
  for (const tar of tars) {
    const layer = writeEstargz(tar)
    expect(await faults(layer, layer.tar)).toEqual([])
  }
})

test('headers longer than the table lets expect fail the read, and nothing is written over', async () => {
  const comment = paxPart([['comment', 'c'.repeat(200_000)]])
  const layer = writeEstargz(makeTar({ name: 'a', content: 'a' }, comment, { name: 'b' }))
  const map = (await arrange(layer))?.map
  if (map === undefined) throw new Error('the layer has no table')
  expect(await failureOf(() => decodeAll(map, layer.blob))).toMatchObject({
    name: 'LayerError',
    code: 'DATA_LOSS',
  })
})

test('a gzip blob without the footer has no table', async () => {
  expect(await arrange({ blob: Buffer.alloc(200, 'x') })).toBeUndefined()
  expect(await arrange({ blob: Buffer.from('short') })).toBeUndefined()
})

describe('a lie in the table', () => {
  const tar = makeTar(
    { name: 'd/', typeflag: '5' },
    { name: 'd/one', content: 'one' },
    { name: 'd/two', content: 'x'.repeat(2500) },
    { name: 'd/link', typeflag: '2', linkName: 'one' },
  )
  const line = (lines: EstargzLine[], name: string): EstargzLine => {
    const found = lines.find((each) => each['name'] === name)
    if (found === undefined) throw new Error(`the layer has no ${name}`)
    return found
  }
  const set =
    (name: string, fields: EstargzLine) =>
    (lines: EstargzLine[]): void =>
      void Object.assign(line(lines, name), fields)

  test.each<[string, (lines: EstargzLine[]) => void, RegExp]>([
    ['a chunk before the one before', set('d/two', { offset: 1 }), /before what precedes it/],
    ['a chunk outside of the blob', set('d/two', { offset: 1e9 }), /before what precedes it/],
    ['a negative offset', set('d/two', { offset: -1 }), /no whole number/],
    ['an offset that is no number', set('d/two', { offset: '1' }), /no whole number/],
    ['another chunk size', set('d/two', { chunkSize: 7 }), /where 1000 are/],
    ['a chunk inside of a member', set('d/two', { innerOffset: 7 }), /shares a gzip member/],
    ['a file beyond all limits', set('d/one', { size: 2 ** 52 }), /piece of/],
    ['a digest that is none', set('d/one', { chunkDigest: 'md5:1' }), /no SHA-256/],
    ['an unknown type', set('d/link', { type: 'door' }), /no known type/],
    ['a name that climbs out', set('d/link', { name: '../../x' }), /climbs out/],
    ['a name that was not UTF-8', set('d/link', { name: 'caf\ufffd' }), /not UTF-8/],
    ['a link to nothing', set('d/link', { linkName: '' }), /without a usable target/],
    ['an owner beyond Linux', set('d/link', { uid: 2 ** 32 }), /user ID/],
    ['a time that is none', set('d/link', { modtime: 'noon' }), /no time/],
    ['xattrs of the wrong kind', set('d/link', { xattrs: { a: 1 } }), /no bytes/],
    ['chunks of a link', (lines) => void lines.push({ type: 'chunk' }), /no content/],
    [
      'an entry that is null',
      (lines) => void lines.push(null as unknown as EstargzLine),
      /no object/,
    ],
  ])('%s is found before the layer is mounted', async (_, change, message) => {
    const layer = writeEstargz(tar, { chunkBytes: 1000, change })
    expect(await failureOf(() => arrange(layer))).toMatchObject({
      name: 'LayerError',
      message: expect.stringMatching(message),
    })
  })

  test('a table that is not the one of the annotation is data loss', async () => {
    const { blob } = writeEstargz(tar)
    const annotations = { 'containerd.io/snapshot/stargz/toc.digest': `sha256:${'0'.repeat(64)}` }
    expect(await failureOf(() => arrange({ blob, annotations }))).toMatchObject({
      code: 'DATA_LOSS',
    })
  })

  test('a wrong digest or size of a chunk fails the read of it', async () => {
    for (const fields of [{ chunkDigest: `sha256:${'0'.repeat(64)}` }, { size: 4 }]) {
      const layer = writeEstargz(tar, { change: set('d/one', fields) })
      const map = (await arrange(layer))?.map
      if (map === undefined) throw new Error('the layer has no table')
      expect(await failureOf(() => decodeAll(map, layer.blob))).toMatchObject({ code: 'DATA_LOSS' })
    }
  })
})

// Goal and method: as for zstd:chunked, in ../chunked/join-chunked-tables.test.ts.
test('3,000 random changes of the table are refused, found out when complete, or harmless', async () => {
  const random = seeded(29)
  const source = treeWithoutLongFiles(4)
  const tally = { refused: 0, undecodable: 0, foundOut: 0, same: 0 }
  for (let round = 0; round < 3000; round++) {
    const layer = writeEstargz(source, {
      chunkBytes: 1000,
      changeJson: (json) => changed(json, random),
    })
    const outcome = await outcomeOf(layer, layer.tar)
    expect({ round, outcome }).toEqual({ round, outcome: expect.any(String) })
    if (!(outcome instanceof Error)) tally[outcome]++
  }
  expect(Object.values(tally).every((count) => count > 10)).toBe(true)
}, 120_000)

/** A tree of which a round takes milliseconds. */
function treeWithoutLongFiles(seed: number): Buffer {
  const random = seeded(seed)
  const files = Array.from({ length: 12 }, (_, index) => ({
    name: `d/file-${index}`,
    content: randomContent(random, random(3000)),
    uid: random(70_000),
    mtime: random(2 ** 31),
  }))
  const attribute = paxPart([['SCHILY.xattr.user.name', 'value']])
  const link = { name: 'd/link', typeflag: '2', linkName: 'file-0' }
  const device = { name: 'd/device', typeflag: '3', devMajor: 12, devMinor: 345 }
  return makeTar({ name: 'd/', typeflag: '5' }, ...files, attribute, link, device)
}

async function outcomeOf(
  layer: Layer,
  tar: Buffer,
): Promise<'refused' | 'undecodable' | 'foundOut' | 'same' | Error> {
  let arranged: Arranged | undefined
  try {
    arranged = await arrange(layer)
    if (arranged === undefined) return new Error('the table was not found')
    const decoded = await decodeAll(arranged.map, layer.blob)
    if (!decoded.tar.equals(tar)) return 'foundOut'
    const difference = sameEstargzToc(walk(decoded.tar), arranged.toc, decoded.arrangement)
    return difference === undefined ? 'same' : 'foundOut'
  } catch (error) {
    if (!(error instanceof LayerError)) return error instanceof Error ? error : new Error('?')
    return arranged === undefined ? 'refused' : 'undecodable'
  }
}

/** One to three digits or bytes of a text exchanged. */
function changed(text: Buffer, random: (max: number) => number): Buffer {
  const bytes = Buffer.from(text)
  for (let left = 1 + random(3); left > 0; left--) {
    const at = random(bytes.length)
    const byte = bytes[at] ?? 0
    const isDigit = byte >= 0x30 && byte <= 0x39
    bytes[at] = isDigit ? 0x30 + random(10) : random(4) === 0 ? random(256) : byte
  }
  return bytes
}
