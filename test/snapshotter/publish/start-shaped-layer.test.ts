import { beforeAll, describe, expect, test } from 'vitest'
import { BRIDGE_BYTES, BridgedFrames } from '../../../snapshotter/publish/bridged-frames.ts'
import { LeafBoundaries, OWN_LEAF_BYTES_MIN } from '../../../snapshotter/publish/leaf-boundaries.ts'
import {
  CONTENT_BRIDGE_BYTES,
  contentParts,
  type StartReads,
} from '../../../snapshotter/publish/start-reads.ts'
import type { WrittenLayer } from '../../../snapshotter/publish/write-layer.ts'
import { makeTar } from '../../support/make-tar.ts'
import { randomContent, randomTreeTar } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { writeWholeLayer } from '../../support/write-whole-layer.ts'

const KIB = 1024

describe('the parts of a content', () => {
  const far = 3 * CONTENT_BRIDGE_BYTES

  test('are what is read, in whole pages, and what is not', () => {
    expect(contentParts([{ start: far + 1, end: far + 2 }], 2 * far)).toEqual([
      { end: far, isRead: false },
      { end: far + 4096, isRead: true },
      { end: 2 * far, isRead: false },
    ])
  })

  test('are one where reads overlap or are near, in whatever order they come', () => {
    const reads = [
      { start: 60 * KIB, end: 70 * KIB },
      { start: 0, end: 40 * KIB },
      { start: 4 * KIB, end: 8 * KIB },
    ]
    expect(contentParts(reads, far)).toEqual([
      { end: 72 * KIB, isRead: true },
      { end: far, isRead: false },
    ])
  })

  test('end where the content ends, whatever a list says', () => {
    expect(contentParts([{ start: 0, end: 1e12 }], 5000)).toEqual([{ end: 5000, isRead: true }])
    expect(contentParts([{ start: 1e12, end: 2e12 }], 5000)).toEqual([{ end: 5000, isRead: false }])
    expect(contentParts([], 5000)).toEqual([{ end: 5000, isRead: false }])
  })
})

test('a few unread bytes between reads count as read, and more do not', () => {
  const frame = (bytes: number, isRead: boolean | undefined) => ({
    pieces: [],
    bytes: new Uint8Array(bytes),
    isRead,
  })
  const flagsOf = (...frames: ReturnType<typeof frame>[]): (boolean | undefined)[] => {
    const bridged = new BridgedFrames()
    const placed = frames.flatMap((each) => bridged.push(each))
    return [...placed, ...bridged.end()].map(({ isRead }) => isRead)
  }
  const [read, header] = [frame(10, true), frame(100, undefined)]
  const [few, many] = [frame(BRIDGE_BYTES - 200, false), frame(BRIDGE_BYTES, false)]
  expect(flagsOf(header, few, read)).toEqual([undefined, false, true])
  expect(flagsOf(read, header, few, header, read)).toEqual([true, true, true, true, true])
  expect(flagsOf(read, header, many, read)).toEqual([true, undefined, false, true])
  expect(flagsOf(read, few, few, read)).toEqual([true, false, false, true])
  expect(flagsOf(read, header)).toEqual([true, undefined])
})

test('a leaf that a start reads takes the padding after its last content, and no other content', () => {
  const boundaries = new LeafBoundaries()
  const place = (blobBytes: number, isRead?: boolean) =>
    boundaries.place({
      blobBytes,
      layerBytes: 2 * blobBytes,
      ...(isRead === undefined ? {} : { contentDigest: 'f'.repeat(64), isRead }),
    })
  const goesOn = { endsBefore: false, endsAfter: false }
  expect(place(100)).toEqual(goesOn)
  expect(place(OWN_LEAF_BYTES_MIN, true)).toEqual({ ...goesOn, endsBefore: true })
  expect(place(100)).toEqual(goesOn)
  expect(place(900, true)).toEqual({ ...goesOn, endsBefore: true })
  expect(place(100)).toEqual(goesOn)
  expect(place(900, false)).toEqual({ ...goesOn, endsBefore: true })
  expect(place(900, true)).toEqual({ ...goesOn, endsBefore: true })
})

describe.each([false, true])('a layer whose start is known, compact: %s', (compact) => {
  const random = seeded(11)
  const library = randomContent(random, 6_000_000)
  const tar = Buffer.concat([
    makeTar({ name: 'lib/big.so', content: library, mode: 0o755 }).subarray(0, -1024),
    randomTreeTar(random, 300),
  ])
  const readFiles = new Set(['d1/file-40', 'd2/file-77', 'd7/file-201'])
  const startReads: StartReads = ({ path }) => {
    if (path === 'lib/big.so') {
      return [
        { start: 0, end: 70_000 },
        { start: 3_000_000, end: 3_100_000 },
      ]
    }
    const isRead = readFiles.has(path) || path.startsWith('d3/')
    return isRead ? [{ start: 0, end: 1e9 }] : []
  }
  let plain: WrittenLayer
  let shaped: WrittenLayer
  let leaves: Uint8Array[]
  beforeAll(async () => {
    plain = (await writeWholeLayer(tar, undefined, { compact })).written
    ;({ written: shaped, leaves } = await writeWholeLayer(tar, undefined, { compact, startReads }))
  })

  /** Where in the tar what is read lies, up to the end of its last block. */
  const rangesRead = (): { start: number; end: number }[] =>
    shaped.toc.entries.flatMap(({ kind, path, size, extents = [] }) =>
      kind === 'reg'
        ? startReads({ path, size }).flatMap((read) =>
            extents.map(({ layerOffset }) => ({
              start: layerOffset + read.start,
              end: layerOffset + Math.ceil(Math.min(read.end, size) / 512) * 512,
            })),
          )
        : [],
    )
  const fetched = ({ map }: WrittenLayer): { layerBytes: number; blobBytes: number } => {
    const sum = { layerBytes: 0, blobBytes: 0 }
    const ranges = rangesRead()
    for (let unit = 0; unit + 1 < map.starts.length; unit++) {
      const [start, end] = [map.starts[unit] ?? 0, map.starts[unit + 1] ?? 0]
      if (!ranges.some((range) => range.start < end && start < range.end)) continue
      const { start: from, end: to } = map.blobRange(unit)
      sum.layerBytes += end - start
      sum.blobBytes += to - from
    }
    return sum
  }

  test('is the same tar, unit by unit', async () => {
    expect(shaped.diffId).toBe(plain.diffId)
    const parts: Uint8Array[] = []
    for (let unit = 0; unit + 1 < shaped.map.starts.length; unit++) {
      parts.push(await shaped.map.decode(unit, leaves[unit] ?? Buffer.alloc(0)))
    }
    expect(Buffer.concat(parts).equals(tar)).toBe(true)
  })

  test('gives what is read without much else, where a layer whose start is not known gives more', () => {
    const needed = rangesRead().reduce((sum, { start, end }) => sum + end - start, 0)
    expect(needed).toBeGreaterThan(400_000)
    expect(fetched(shaped).layerBytes).toBeLessThan(1.2 * needed)
    expect(fetched(plain).layerBytes).toBeGreaterThan(1.8 * needed)
    expect(fetched(shaped).blobBytes).toBeLessThan(0.7 * fetched(plain).blobBytes)
  })

  test('is the same blob, however its tar arrives', async () => {
    const again = await writeWholeLayer(tar, () => 1 + random(50_000), { compact, startReads })
    expect(again.written.digest).toBe(shaped.digest)
  })

  test('is hardly larger for it', () => {
    expect(shaped.size).toBeLessThan(1.02 * plain.size)
  })
})
