import { execFileSync } from 'node:child_process'
import { createHash, hash } from 'node:crypto'
import { beforeAll, describe, expect, test } from 'vitest'
import { GROUP_BYTES_MAX, GROUP_BYTES_MIN } from '../../../snapshotter/publish/compact-groups.ts'
import {
  compressGroup,
  GROUP_FRAME_BYTES_MAX,
} from '../../../snapshotter/publish/compress-frame.ts'
import { readLayerIndex } from '../../../snapshotter/toc/read-layer-toc.ts'
import { sameToc } from '../../../snapshotter/toc/same-toc.ts'
import { CHUNKED_CHECKSUM_ANNOTATION } from '../../../snapshotter/toc/zstd-chunked.ts'
import { zstdFrames } from '../../../snapshotter/toc/zstd-frames.ts'
import { makeTar, type TarPart } from '../../support/make-tar.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { writeWholeLayer } from '../../support/write-whole-layer.ts'

type Layer = Awaited<ReturnType<typeof writeWholeLayer>>

/** Files that have much in common with those around them, as a program's sources have, and some that do not. */
function likeFiles(random: (max: number) => number, files: number): TarPart[] {
  const words = Array.from({ length: 600 }, () => randomContent(random, 12 + random(40)))
  return Array.from({ length: files }, (_, index) => {
    const name = `lib/module-${index}`
    if (index % 300 === 299) return { name, content: randomContent(random, 3_000_000) }
    const line = (): Buffer => words[random(words.length)] ?? Buffer.alloc(0)
    return { name, content: Buffer.concat(Array.from({ length: 60 + random(900) }, line)) }
  })
}

const writeCompact = (tar: Uint8Array, pieceBytes?: () => number): Promise<Layer> =>
  writeWholeLayer(tar, pieceBytes, { compact: true })

const digests = (leaves: readonly Uint8Array[]): string[] =>
  leaves.map((leaf) => hash('sha256', leaf))

describe('a layer that is written compactly', () => {
  const files = likeFiles(seeded(1), 1800)
  const tar = makeTar(...files)
  let layer: Layer
  beforeAll(async () => {
    layer = await writeCompact(tar)
  })

  test('is valid zstd of the tar, with one frame in each leaf, and no leaf beyond a block', async () => {
    const { blob, leaves, written } = layer
    const decoded = execFileSync('zstd', ['-d', '-c', '-q'], { input: blob, maxBuffer: 1 << 28 })
    expect(decoded.equals(tar)).toBe(true)
    const { map } = written
    const units = map.starts.length - 1
    expect(units).toBeGreaterThan(5)
    for (let unit = 0; unit < units; unit++) {
      const leaf = leaves[unit] ?? Buffer.alloc(0)
      expect(zstdFrames(leaf)).toHaveLength(1)
      expect(leaf.length).toBeLessThanOrEqual(GROUP_FRAME_BYTES_MAX)
      const part = tar.subarray(map.starts[unit], map.starts[unit + 1])
      expect(part.length).toBeLessThanOrEqual(GROUP_BYTES_MAX)
      expect(Buffer.from(await map.decode(unit, leaf)).equals(part), `unit ${unit}`).toBe(true)
    }
  })

  test('is smaller than one of a frame for each file, and has fewer leaves', async () => {
    const usual = await writeWholeLayer(tar)
    expect(layer.blob.length).toBeLessThan(0.9 * usual.blob.length)
    expect(layer.leaves.length).toBeLessThan(usual.leaves.length / 4)
  })

  test('is read by its index, and says why zstd:chunked readers cannot', async () => {
    const { blob, written } = layer
    const read = async ({ start, end }: { start: number; end: number }): Promise<Uint8Array> =>
      blob.subarray(start, end)
    const { annotations } = written
    const index = await readLayerIndex(annotations, read, blob.length, AbortSignal.timeout(30_000))
    expect(index && sameToc(index.toc, written.toc)).toBeUndefined()
    expect(index?.toc.entries).toHaveLength(files.length)
    expect(written.chunkedObstacle).toMatch('its files share frames')
    expect(annotations).not.toHaveProperty([CHUNKED_CHECKSUM_ANNOTATION])
  })

  test('is the same blob, however its tar arrives', async () => {
    const random = seeded(2)
    const again = await writeCompact(tar, () => 1 + random(300_000))
    expect(digests(again.leaves)).toEqual(digests(layer.leaves))
  })

  test('has most leaves in common with a layer that has a file more in front', async () => {
    const more = makeTar({ name: 'a', content: randomContent(seeded(3), 90_000) }, ...files)
    const known = new Set(digests(layer.leaves))
    const { leaves, written } = await writeCompact(more)
    const units = leaves.slice(0, written.map.starts.length - 1)
    expect(digests(units).filter((leaf) => known.has(leaf)).length).toBeGreaterThanOrEqual(
      units.length - 2,
    )
  })
})

test('what does not compress is parted into leaves that fit a block', async () => {
  const files = Array.from({ length: 40 }, (_, index) => ({
    name: `noise-${index}`,
    content: createHash('shake256', { outputLength: 400_000 }).update(`${index}`).digest(),
  }))
  const tar = makeTar(...files)
  const { leaves, written } = await writeCompact(tar)
  const lengths = leaves.slice(0, written.map.starts.length - 1).map(({ length }) => length)
  expect(Math.max(...lengths)).toBeLessThanOrEqual(GROUP_FRAME_BYTES_MAX)
  expect(Math.max(...lengths)).toBeGreaterThan(GROUP_BYTES_MIN)
})

test('the frames of a group are its pieces in order, however they are parted', () => {
  const random = seeded(4)
  const pieces = Array.from({ length: 9 }, () => randomContent(random, random(1_000_000)))
  const lengths = pieces.map(({ length }) => length)
  const frames = compressGroup(Buffer.concat(pieces), lengths)
  expect(frames.length).toBeGreaterThan(1)
  expect(frames.reduce((sum, frame) => sum + frame.pieces, 0)).toBe(pieces.length)
  const blob = Buffer.concat(frames.map(({ bytes }) => bytes))
  const decoded = execFileSync('zstd', ['-d', '-c', '-q'], { input: blob, maxBuffer: 1 << 28 })
  expect(decoded.equals(Buffer.concat(pieces))).toBe(true)
})
