import { expect, test } from 'vitest'
import {
  CHUNK_BYTES_MAX,
  CHUNK_BYTES_MIN,
  CHUNK_BYTES_USUAL,
  ContentChunks,
} from '../../../snapshotter/publish/content-chunks.ts'
import { seeded } from '../../support/seeded.ts'

const chunks = new ContentChunks()

function cut(content: Uint8Array): number[] {
  const lengths: number[] = []
  for (let at = 0; at < content.length; at += lengths.at(-1) ?? 0) {
    lengths.push(chunks.next(content.subarray(at)))
  }
  return lengths
}

function noise(seed: number, bytes: number): Buffer {
  const random = seeded(seed)
  const content = Buffer.alloc(bytes)
  for (let at = 0; at + 4 <= bytes; at += 4) content.writeUInt32LE(random(2 ** 32), at)
  return content
}

test('chunks keep to their limits and are of the usual length on average', () => {
  const lengths = cut(noise(1, 40_000_000))
  const full = lengths.slice(0, -1)
  const mean = full.reduce((sum, length) => sum + length, 0) / full.length
  expect(Math.min(...full)).toBeGreaterThan(CHUNK_BYTES_MIN)
  expect(Math.max(...full)).toBeLessThanOrEqual(CHUNK_BYTES_MAX)
  expect(mean).toBeGreaterThan(0.8 * CHUNK_BYTES_USUAL)
  expect(mean).toBeLessThan(1.25 * CHUNK_BYTES_USUAL)
})

test('content without a place to cut is cut at the longest length', () => {
  expect(cut(Buffer.alloc(3 * CHUNK_BYTES_MAX))).toEqual([
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MAX,
  ])
  expect(cut(Buffer.alloc(CHUNK_BYTES_MIN))).toEqual([CHUNK_BYTES_MIN])
})

test('an insertion moves only the cuts around it', () => {
  const content = noise(2, 8_000_000)
  const changed = Buffer.concat([
    content.subarray(0, 1e6),
    Buffer.from('new'),
    content.subarray(1e6),
  ])
  const ends = (lengths: number[]): number[] => {
    let end = 0
    return lengths.map((length) => (end += length))
  }
  const before = ends(cut(content))
  const after = ends(cut(changed))
  expect(after.slice(-8)).toEqual(before.slice(-8).map((end) => end + 3))
})

// The cuts are part of the format: if this fails, every image that was pushed before has other blocks.
test('the cuts are where they always were', () => {
  expect(cut(noise(3, 4_000_000))).toEqual([
    593_008, 515_753, 631_143, 535_376, 503_632, 600_892, 558_710, 61_486,
  ])
})
