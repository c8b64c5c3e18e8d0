import { createHash } from 'node:crypto'
import zlib from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { LayerError } from '../../../../snapshotter/errors.ts'
import { readLayerMap } from '../../../../snapshotter/layers/read-layer-map.ts'
import { ChunkLayerMap } from '../../../../snapshotter/toc/chunked/chunk-layer-map.ts'
import { fetchChunkedTables } from '../../../../snapshotter/toc/chunked/fetch-chunked-tables.ts'
import { joinChunkedTables } from '../../../../snapshotter/toc/chunked/join-chunked-tables.ts'
import type { LayerToc } from '../../../../snapshotter/toc/layer-toc.ts'
import { sameToc } from '../../../../snapshotter/toc/same-toc.ts'
import { walkTar } from '../../../../snapshotter/toc/walk-tar.ts'
import {
  CHUNKED_CHECKSUM_ANNOTATION,
  CHUNKED_POSITION_ANNOTATION,
  TAR_SPLIT_POSITION_ANNOTATION,
} from '../../../../snapshotter/toc/zstd-chunked.ts'
import { decodeZstdFrames, skippableFrame } from '../../../../snapshotter/toc/zstd-frames.ts'
import { failureOf } from '../../../support/failure-of.ts'
import { makeTar } from '../../../support/make-tar.ts'
import { randomTreeTar } from '../../../support/random-tree-tar.ts'
import { seeded } from '../../../support/seeded.ts'
import { chunkedLayer } from '../../layers/published-image.ts'
import { skopeoLayer } from './golden/skopeo-layer.ts'

const { signal } = new AbortController()
const LEAF_BYTES = 4096

type Layer = {
  readonly blob: Uint8Array
  readonly annotations?: Readonly<Record<string, string>>
}
type Joined = { readonly toc: LayerToc; readonly map: ChunkLayerMap }

/** What the tables of a layer give; `read` has what was read of the blob. */
async function join(
  { blob, annotations = {} }: Layer,
  read: { start: number; end: number }[] = [],
): Promise<Joined | undefined> {
  const readBlob = async (range: { start: number; end: number }): Promise<Uint8Array> => {
    read.push(range)
    return blob.subarray(range.start, range.end)
  }
  const tables = await fetchChunkedTables(annotations, readBlob, blob.length, signal)
  const leaves = Math.ceil(blob.length / LEAF_BYTES)
  const leafStarts = Float64Array.from({ length: leaves + 1 }, (_, leaf) =>
    Math.min(leaf * LEAF_BYTES, blob.length),
  )
  return tables && joinChunkedTables(tables, { size: blob.length, leafStarts }, signal)
}

/** The layer file, unit by unit, each from its own bytes of the blob. */
async function decodeAll(map: ChunkLayerMap, blob: Uint8Array): Promise<Buffer> {
  const units = Array.from({ length: map.starts.length - 1 }, (_, unit) => {
    const { start, end } = map.blobRange(unit)
    return map.decode(unit, blob.subarray(start, end))
  })
  return Buffer.concat(await Promise.all(units))
}

function walk(tar: Uint8Array): Promise<LayerToc> {
  const read = (offset: number, length: number): Uint8Array => tar.subarray(offset, offset + length)
  return walkTar(read, tar.length, signal)
}

/** What the layer's tables get wrong: the entries of its tar, its bytes, or what comes back from the disk. */
async function faults(layer: Layer, tar: Buffer): Promise<string[]> {
  const joined = await join(layer)
  if (joined === undefined) return ['the layer has no tables']
  const { toc, map } = joined
  const stored = readLayerMap(map.toBytes())
  if (!(stored instanceof ChunkLayerMap)) return ['its map comes back as another']
  const isSame = (await decodeAll(map, layer.blob)).equals(tar)
  const isSameStored = (await decodeAll(stored, layer.blob)).equals(tar)
  return [
    sameToc(toc, await walk(tar)) ?? '',
    isSame ? '' : 'its bytes differ',
    isSameStored ? '' : 'its bytes differ after a restart',
  ].filter(Boolean)
}

describe('tables that containers/storage wrote', () => {
  test('give every odd entry as the tar has it, and its bytes, by annotations or by the footer', async () => {
    const { blob, annotations, tar } = await skopeoLayer()
    expect((await walk(tar)).entries.length).toBeGreaterThan(75)
    expect(await faults({ blob, annotations }, tar)).toEqual([])
    expect(await faults({ blob }, tar)).toEqual([])
  })

  test('are all that is read of the blob', async () => {
    const { blob, annotations } = await skopeoLayer()
    const read: { start: number; end: number }[] = []
    const joined = await join({ blob, annotations }, read)
    const framesEnd = joined?.map.blobRange(joined.map.starts.length - 2).end ?? Number.NaN
    expect(read).toHaveLength(2)
    for (const { start } of read) expect(start).toBeGreaterThan(framesEnd)
  })

  test('say nothing of a unit that the leaf of its first byte does not hold', async () => {
    const { blob, annotations } = await skopeoLayer()
    const map = (await join({ blob, annotations }))?.map
    if (map === undefined) throw new Error('the layer has no tables')
    const leafOf = (unit: number): number => Math.floor(map.blobRange(unit).start / LEAF_BYTES)
    const leaves = Array.from({ length: map.starts.length - 1 }, (_, unit) => leafOf(unit))
    expect(leaves.length).toBeGreaterThan(2)
    expect(new Set(leaves).size).toBe(leaves.length)
  })
})

test.each([1, 2, 3])('tables of a random tree (seed %i) give what its tar gives', async (seed) => {
  const tar = randomTreeTar(seeded(seed), 300)
  const layer = await chunkedLayer(tar)
  expect(await faults(layer, tar)).toEqual([])
  expect(await faults({ blob: layer.blob }, tar)).toEqual([])
})

test('a layer without files and one without entries have tables too', async () => {
  for (const tar of [makeTar(), makeTar({ name: 'd/', typeflag: '5' }, { name: 'empty' })]) {
    const layer = await chunkedLayer(tar)
    expect(await faults(layer, tar)).toEqual([])
  }
})

test('a layer that has neither annotation nor footer has no tables', async () => {
  expect(await join({ blob: zlib.zstdCompressSync(Buffer.alloc(4096)) })).toBeUndefined()
  expect(await join({ blob: Buffer.from('short') })).toBeUndefined()
})

describe('a lie in the tables', () => {
  type Entry = Record<string, unknown>
  type Change = {
    readonly entries?: (entries: Entry[]) => void
    readonly tarSplit?: (lines: string) => string
    readonly annotations?: (annotations: Record<string, string>) => void
  }
  /** The golden layer with its tables changed, and everything that names them made to fit. */
  async function lying(change: Change): Promise<Layer & { tar: Buffer }> {
    const { blob, tar, annotations } = await skopeoLayer()
    const tables = await takeApart({ blob, annotations })
    const toc = JSON.parse(tables.json.toString()) as { entries: Entry[] }
    change.entries?.(toc.entries)
    const lines = change.tarSplit?.(tables.tarSplit.toString()) ?? tables.tarSplit.toString()
    const layer = putTogether(tables.frames, Buffer.from(JSON.stringify(toc)), Buffer.from(lines))
    change.annotations?.(layer.annotations)
    return { ...layer, tar }
  }
  const reg = (entries: Entry[], name: string): Entry => {
    const found = entries.find((entry) => entry['name'] === name)
    if (found === undefined) throw new Error(`the golden layer has no ${name}`)
    return found
  }
  const set = (name: string, fields: Entry) => ({
    entries: (entries: Entry[]): void => void Object.assign(reg(entries, name), fields),
  })

  const changed: [string, Change, RegExp][] = [
    ['a chunk before the one before', set('bin/capable', { offset: 100 }), /lie from byte/],
    ['a chunk outside of the blob', set('many/059', { endOffset: 1e9 }), /lie from byte/],
    ['an offset that is no number', set('bin/capable', { offset: '7' }), /no whole number/],
    ['a negative offset', set('bin/capable', { offset: -1 }), /no whole number/],
    ['an end before its start', set('bin/capable', { endOffset: 1 }), /has a chunk up to/],
    ['another size', set('bin/capable', { size: 4 }), /is not the next file/],
    ['another name', set('bin/capable', { name: 'bin/other' }), /is not the next file/],
    ['a digest that is none', set('bin/capable', { digest: 'sha256:12' }), /no SHA-256/],
    ['a name that climbs out', set('bin/capable', { name: '../../x' }), /climbs out/],
    [
      'a file that the tar does not have',
      { entries: (entries: Entry[]) => void entries.push({ ...reg(entries, 'many/059') }) },
      /table of contents 6\d/,
    ],
    [
      'a file left out',
      {
        entries: (entries: Entry[]) =>
          void entries.splice(entries.indexOf(reg(entries, 'many/059')), 1),
      },
      /is not the next file/,
    ],
    [
      'chunks of nothing',
      { entries: (entries: Entry[]) => void entries.unshift({ type: 'chunk' }) },
      /no content/,
    ],
    [
      'an entry that is no object',
      { entries: (entries: Entry[]) => void entries.push(null as unknown as Entry) },
      /no object/,
    ],
    [
      'a tar-split of another tar',
      { tarSplit: (lines: string) => lines.replace('"size":3,', '"size":4,') },
      /byte|content/,
    ],
    [
      'a tar-split that ends early',
      { tarSplit: (lines: string) => lines.slice(0, lines.length / 2) },
      /no JSON/,
    ],
    [
      'a record of no known type',
      { tarSplit: (lines: string) => `{"type":3}\n${lines}` },
      /no known type/,
    ],
    [
      'a size beyond counting',
      { tarSplit: (lines: string) => lines.replace('"size":3,', '"size":9007199254740991,') },
      /absurdly/,
    ],
  ]

  test.each(changed)('%s is found before the layer is mounted', async (_, change, message) => {
    const failure = await failureOf(async () => join(await lying(change)))
    expect(failure).toMatchObject({ name: 'LayerError', message: expect.stringMatching(message) })
  })

  test.each([
    [CHUNKED_CHECKSUM_ANNOTATION, `sha256:${'0'.repeat(64)}`, 'DATA_LOSS'],
    [CHUNKED_POSITION_ANNOTATION, '1:2', 'INVALID_ARGUMENT'],
    [CHUNKED_POSITION_ANNOTATION, '7:1:1:1', 'INVALID_ARGUMENT'],
    [CHUNKED_POSITION_ANNOTATION, '8:999999999:1:1', 'INVALID_ARGUMENT'],
    [CHUNKED_POSITION_ANNOTATION, '8:1:999999999999:1', 'RESOURCE_EXHAUSTED'],
    [TAR_SPLIT_POSITION_ANNOTATION, '8:1:999999999999', 'RESOURCE_EXHAUSTED'],
    [TAR_SPLIT_POSITION_ANNOTATION, 'x', 'INVALID_ARGUMENT'],
  ])('annotation %s of %s is %s', async (name, value, code) => {
    const layer = await lying({ annotations: (all) => void (all[name] = value) })
    expect(await failureOf(() => join(layer))).toMatchObject({ name: 'LayerError', code })
  })

  test('a table without a tar-split, as writers before 2024 made it, cannot be used', async () => {
    const layer = await lying({
      annotations: (all) => void delete all[TAR_SPLIT_POSITION_ANNOTATION],
    })
    expect(await failureOf(() => join(layer))).toMatchObject({ code: 'UNIMPLEMENTED' })
  })

  test('a wrong digest of a chunk fails the reads of that chunk and of no other', async () => {
    const layer = await lying(set('bin/capable', { digest: `sha256:${'0'.repeat(64)}` }))
    const map = (await join(layer))?.map
    if (map === undefined) throw new Error('the layer has no tables')
    const units = [...Array(map.starts.length - 1).keys()]
    const outcomes = await Promise.all(
      units.map(async (unit) => {
        const { start, end } = map.blobRange(unit)
        try {
          return (await map.decode(unit, layer.blob.subarray(start, end))).length
        } catch (error) {
          return error instanceof LayerError ? error.code : error
        }
      }),
    )
    expect(outcomes.filter((outcome) => outcome === 'DATA_LOSS')).toHaveLength(1)
    expect(outcomes.filter((outcome) => typeof outcome !== 'number')).toHaveLength(1)
  })

  test('a sparse file, whose content is not its bytes in the tar, cannot be used', async () => {
    const { blob, annotations } = await skopeoLayer()
    const { frames, json } = await takeApart({ blob, annotations })
    const header = makeTar({
      name: 's',
      typeflag: 'S',
      format: 'gnu',
      size: 512,
      raw: new Map([
        [386, Buffer.from('00000000000\x0000000001000\x00')],
        [483, Buffer.from('00000004000\x00')],
      ]),
    })
    const lines = [
      { type: 2, payload: header.subarray(0, 512).toString('base64') },
      { type: 1, name: 's', size: 512 },
      { type: 2, payload: Buffer.alloc(1024).toString('base64') },
    ]
    const layer = putTogether(
      frames,
      json,
      Buffer.from(lines.map((line) => JSON.stringify(line)).join('\n')),
    )
    expect(await failureOf(() => join(layer))).toMatchObject({ code: 'UNIMPLEMENTED' })
  })
})

// Goal: no bytes of a stranger's tables do anything but a typed refusal, or a layer that is what its tar is. Method: change
// the tables at random, in their JSON, in the tar-split's headers, and as bytes; what is still accepted is decoded whole, and
// the check of a complete layer, diff ID and table of contents, must then see every difference.
test('3,000 random changes of the tables are refused, found out when complete, or harmless', async () => {
  const random = seeded(23)
  const { blob, annotations, tar } = await skopeoLayer()
  const { frames, json, tarSplit } = await takeApart({ blob, annotations })
  const there = await walk(tar)
  const tally = { refused: 0, undecodable: 0, foundOut: 0, same: 0 }
  for (let round = 0; round < 3000; round++) {
    const [toc, split] =
      round % 2 === 0 ? [changed(json, random), tarSplit] : [json, changedSplit(tarSplit, random)]
    const layer = putTogether(frames, toc, split)
    const outcome = await outcomeOf(layer, there, tar)
    expect({ round, outcome }).toEqual({ round, outcome: expect.any(String) })
    if (!(outcome instanceof Error)) tally[outcome]++
  }
  expect(Object.values(tally).every((count) => count > 10)).toBe(true)
}, 120_000)

async function outcomeOf(
  layer: Layer,
  there: LayerToc,
  tar: Buffer,
): Promise<'refused' | 'undecodable' | 'foundOut' | 'same' | Error> {
  let decoded: Buffer | undefined
  let joined: Joined | undefined
  try {
    joined = await join(layer)
    if (joined === undefined) return new Error('the tables were not found')
    decoded = await decodeAll(joined.map, layer.blob)
  } catch (error) {
    if (!(error instanceof LayerError))
      return error instanceof Error ? error : new Error(String(error))
    return joined === undefined ? 'refused' : 'undecodable'
  }
  if (!decoded.equals(tar)) return new Error('it decoded to another tar')
  return sameToc(joined.toc, there) === undefined ? 'same' : 'foundOut'
}

type Random = (max: number) => number

/** One to three bytes, digits or words of a text exchanged. */
function changed(text: Buffer, random: Random): Buffer {
  const bytes = Buffer.from(text)
  for (let left = 1 + random(3); left > 0; left--) {
    const at = random(bytes.length)
    const byte = bytes[at] ?? 0
    const isDigit = byte >= 0x30 && byte <= 0x39
    bytes[at] = isDigit ? 0x30 + random(10) : random(4) === 0 ? random(256) : byte
  }
  if (random(20) === 0) return bytes.subarray(0, random(bytes.length))
  return bytes
}

/** A byte of a header, or of the lines themselves. */
function changedSplit(tarSplit: Buffer, random: Random): Buffer {
  if (random(3) === 0) return changed(tarSplit, random)
  const lines = tarSplit.toString().split('\n')
  const index = 2 * random(Math.floor(lines.length / 2))
  const line = JSON.parse(lines[index] ?? '{}') as Record<string, unknown>
  const payload = Buffer.from(typeof line['payload'] === 'string' ? line['payload'] : '', 'base64')
  const at = random(Math.max(payload.length, 1))
  if (payload.length > 0) payload[at] = random(2) === 0 ? random(256) : 0x30 + random(8)
  // The checksum of a header is made to fit, so that what it says is looked at.
  for (let start = payload.length - 512; start >= 0 && random(4) > 0; start -= 512)
    fixChecksum(payload.subarray(start, start + 512))
  lines[index] = JSON.stringify({ ...line, payload: payload.toString('base64') })
  return Buffer.from(lines.join('\n'))
}

function fixChecksum(header: Buffer): void {
  if (header.toString('latin1', 257, 262) !== 'ustar') return
  header.fill(' ', 148, 156)
  const sum = header.reduce((total, byte) => total + byte, 0)
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
}

async function takeApart({
  blob,
  annotations,
}: Layer): Promise<{ frames: Buffer; json: Buffer; tarSplit: Buffer }> {
  const read = async ({ start, end }: { start: number; end: number }): Promise<Uint8Array> =>
    blob.subarray(start, end)
  const tables = await fetchChunkedTables(annotations ?? {}, read, blob.length, signal)
  if (tables === undefined) throw new Error('the layer has no tables')
  const { toc, tarSplit, framesEnd } = tables
  return {
    frames: Buffer.from(blob.subarray(0, framesEnd)),
    json: Buffer.from(decodeZstdFrames(toc.stored, toc.bytes)),
    tarSplit: Buffer.from(decodeZstdFrames(tarSplit.stored, tarSplit.bytes)),
  }
}

/** A layer of these frames and tables, with annotations that fit. */
function putTogether(
  frames: Buffer,
  json: Buffer,
  tarSplit: Buffer,
): Layer & { annotations: Record<string, string> } {
  const [toc, split] = [zlib.zstdCompressSync(json), zlib.zstdCompressSync(tarSplit)]
  const tocStart = frames.length + 8
  const splitStart = tocStart + toc.length + 8
  return {
    blob: Buffer.concat([frames, skippableFrame(toc), skippableFrame(split)]),
    annotations: {
      [CHUNKED_CHECKSUM_ANNOTATION]: `sha256:${createHash('sha256').update(toc).digest('hex')}`,
      [CHUNKED_POSITION_ANNOTATION]: `${tocStart}:${toc.length}:${json.length}:1`,
      [TAR_SPLIT_POSITION_ANNOTATION]: `${splitStart}:${split.length}:${tarSplit.length}`,
    },
  }
}
