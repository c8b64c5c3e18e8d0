import { zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { CodedError } from '../../../snapshotter/errors.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import {
  decodePrefetchList,
  encodePrefetchList,
  LIST_BYTES_MAX,
  type ListedRange,
  listTotals,
  type PrefetchList,
  RANGES_MAX,
} from '../../../snapshotter/prefetch/prefetch-list.ts'
import { ByteWriter } from '../../../snapshotter/toc/byte-writer.ts'
import { failureOf } from '../../support/failure-of.ts'
import { seeded } from '../../support/seeded.ts'

const LAYER = { diffId: digestOf(Buffer.from('layer')), layerSize: 10_000 }
const RANGE: ListedRange = {
  layer: 0,
  path: 'usr/bin/python3',
  fileSize: 5_000,
  fileOffset: 4_096,
  layerOffset: 4_608,
  length: 904,
}

function listOf(...ranges: Partial<ListedRange>[]): PrefetchList {
  return { layers: [LAYER], ranges: ranges.map((range) => ({ ...RANGE, ...range })) }
}

/** Random ranges of some files of three layers. */
function randomList(seed: number): PrefetchList {
  const random = seeded(seed)
  const layers = [1, 2, 3].map((layer) => ({
    diffId: digestOf(Buffer.from(`${seed} ${layer}`)),
    layerSize: 2 ** 40,
  }))
  const files = Array.from({ length: 40 }, (_, index) => ({
    layer: random(3),
    path: `d${random(4)}/é${index}`,
    fileSize: 1 + random(2 ** 31) * 16,
  }))
  const ranges = Array.from({ length: 200 }, () => {
    const file = files[random(files.length)] ?? { layer: 0, path: 'none', fileSize: 1 }
    const fileOffset = Math.floor(random(1000) * (file.fileSize / 1000))
    const length = 1 + random(Math.min(2 ** 20, file.fileSize - fileOffset))
    return { ...file, fileOffset, length, layerOffset: random(2 ** 31) * 500 }
  })
  return { layers, ranges }
}

test('a list comes back as it was written, ranges in their order', () => {
  for (let seed = 0; seed < 50; seed++) {
    const list = randomList(seed)
    expect(decodePrefetchList(encodePrefetchList(list)), `seed ${seed}`).toEqual(list)
  }
  const empty = { layers: [], ranges: [] }
  expect(decodePrefetchList(encodePrefetchList(empty))).toEqual(empty)
})

test('a thousand ranges of a hundred files take less than 16 bytes each', () => {
  const ranges = Array.from({ length: 1_000 }, (_, index) => ({
    path: `usr/lib/python3/dist-packages/numpy/core/module-${index % 100}.so`,
    fileOffset: 0,
    fileSize: 1_000_000,
    layerOffset: index * 7,
    length: 100,
  }))
  const list = { layers: [{ ...LAYER, layerSize: 1e9 }], ranges: listOf(...ranges).ranges }
  expect(encodePrefetchList(list).length).toBeLessThan(16_000)
  expect(listTotals(list)).toEqual({ bytes: 100_000, files: 100 })
})

test('a list beyond the limits is written as far as it is within', () => {
  const random = seeded(3)
  const ranges = Array.from({ length: RANGES_MAX + 10 }, () => ({
    path: `${random(2 ** 31)}${random(2 ** 31)}${random(2 ** 31)}`,
    fileOffset: random(2 ** 30),
    fileSize: 2 ** 40,
    layerOffset: random(2 ** 31),
    length: 1 + random(2 ** 30),
  }))
  const layers = [{ ...LAYER, layerSize: 2 ** 41 }]
  const stored = encodePrefetchList({ layers, ranges: listOf(...ranges).ranges })
  expect(stored.length).toBeLessThanOrEqual(LIST_BYTES_MAX)
  const { ranges: kept } = decodePrefetchList(stored)
  expect(kept.length).toBeGreaterThan(1_000)
  expect(kept).toEqual(listOf(...ranges).ranges.slice(0, kept.length))
})

describe('a list that lies is refused, and the sentence names the file', () => {
  const lies: [string, Partial<ListedRange>, RegExp][] = [
    ['beyond its layer', { layerOffset: 9_500 }, /"usr\/bin\/python3".*9500 to 10404.*of 10000/],
    ['before its layer', { layerOffset: -1 }, /-1 to 903/],
    ['beyond its file', { fileOffset: 4_097 }, /up to byte 5001 of 5000/],
    ['of no bytes', { length: 0 }, /no bytes/],
    ['that climbs out', { path: '../etc/shadow' }, /climbs out/],
    ['that is absolute', { path: '/etc/shadow' }, /not clean/],
    ['without a name', { path: '' }, /not clean/],
    ['with a NUL', { path: 'a\0b' }, /NUL/],
  ]
  test.each(lies)('a range %s', async (_, lie, sentence) => {
    const stored = encodePrefetchList(listOf({}, lie))
    const error = await failureOf(async () => decodePrefetchList(stored))
    expect(error).toMatchObject({ name: 'LayerError', code: 'INVALID_ARGUMENT' })
    expect(error.message).toMatch(sentence)
  })

  test('a file of a layer that it does not list', async () => {
    const stored = encodePrefetchList(listOf({ layer: 1 }))
    const error = await failureOf(async () => decodePrefetchList(stored))
    expect(error).toMatchObject({ code: 'DATA_LOSS' })
    expect(error.message).toMatch(/names layer 1 of 1/)
  })

  test('more ranges than there may be, or than there are bytes for', async () => {
    for (const count of [RANGES_MAX + 1, RANGES_MAX]) {
      const writer = new ByteWriter()
      writer.raw(Buffer.from('IPDRPRE1'))
      for (const empty of [0, 0]) writer.uint(empty)
      writer.uint(count)
      const stored = zstdCompressSync(writer.written())
      const error = await failureOf(async () => decodePrefetchList(stored))
      expect(error).toMatchObject({ code: 'DATA_LOSS' })
    }
  })

  test('more bytes than are read, before or after they are decompressed', async () => {
    for (const stored of [
      Buffer.alloc(LIST_BYTES_MAX + 1),
      zstdCompressSync(Buffer.alloc(2 ** 24)),
    ]) {
      const error = await failureOf(async () => decodePrefetchList(stored))
      expect(error).toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
      expect(error.message).toMatch(/the limit is/)
    }
  })
})

// Goal: no bytes make the parser do anything but answer or refuse. Method: change bytes of good lists, before compression so
// that they get past zstd, and cut them; what is accepted must be within its own bounds.
test('whatever the bytes, a list is refused with a code or is within its layers', () => {
  const random = seeded(99)
  let accepted = 0
  for (let round = 0; round < 3_000; round++) {
    const body = zstdDecompressSync(encodePrefetchList(randomList(round % 20)))
    for (let change = 0; change <= random(4); change++) body[random(body.length)] = random(256)
    const end = random(5) === 0 ? random(body.length) : body.length
    const list = acceptedOf(zstdCompressSync(body.subarray(0, end)))
    accepted += list === undefined ? 0 : 1
    for (const { layer, layerOffset, length } of list?.ranges ?? []) {
      expect(layerOffset).toBeGreaterThanOrEqual(0)
      expect(layerOffset + length).toBeLessThanOrEqual(list?.layers[layer]?.layerSize ?? 0)
    }
  }
  expect(accepted).toBeGreaterThan(10)
})

/** The list, or undefined if it is refused as it should be. */
function acceptedOf(stored: Uint8Array): PrefetchList | undefined {
  try {
    return decodePrefetchList(stored)
  } catch (error) {
    if (error instanceof CodedError) return undefined
    throw error
  }
}
