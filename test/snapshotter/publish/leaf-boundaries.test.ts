import { hash } from 'node:crypto'
import { expect, test } from 'vitest'
import {
  LEAF_BYTES_MAX,
  LEAF_BYTES_MIN,
  LEAF_BYTES_USUAL,
  LEAF_LAYER_BYTES_MAX,
  LeafBoundaries,
  OWN_LEAF_BYTES_MIN,
} from '../../../snapshotter/publish/leaf-boundaries.ts'
import { seeded } from '../../support/seeded.ts'

const digestOf = (name: number): string => hash('sha256', String(name))

/** Compressed lengths of the leaves that frames fall into. */
function leaves(
  frames: readonly { blobBytes: number; layerBytes: number; contentDigest?: string }[],
): number[] {
  const boundaries = new LeafBoundaries()
  const lengths: number[] = []
  let leaf = 0
  for (const frame of frames) {
    const { endsBefore, endsAfter } = boundaries.place(frame)
    if (endsBefore) {
      lengths.push(leaf)
      leaf = 0
    }
    leaf += frame.blobBytes
    if (endsAfter) {
      lengths.push(leaf)
      leaf = 0
    }
  }
  return leaf > 0 ? [...lengths, leaf] : lengths
}

test('small files come in groups of about the usual length, and never beyond the limits', () => {
  const random = seeded(1)
  const files = Array.from({ length: 20_000 }, (_, name) => {
    const blobBytes = 200 + random(12_000)
    return { blobBytes, layerBytes: 3 * blobBytes, contentDigest: digestOf(name) }
  })
  const lengths = leaves(files).slice(0, -1)
  const mean = lengths.reduce((sum, length) => sum + length, 0) / lengths.length
  expect(mean).toBeGreaterThan(0.8 * LEAF_BYTES_USUAL)
  expect(mean).toBeLessThan(1.2 * LEAF_BYTES_USUAL)
  expect(Math.min(...lengths)).toBeGreaterThanOrEqual(LEAF_BYTES_MIN)
  expect(Math.max(...lengths)).toBeLessThanOrEqual(LEAF_BYTES_MAX)
})

test('a long content is a leaf alone, between leaves of small ones', () => {
  const small = { blobBytes: 900, layerBytes: 2000, contentDigest: 'f'.repeat(64) }
  const long = { ...small, blobBytes: OWN_LEAF_BYTES_MIN }
  const header = { blobBytes: 100, layerBytes: 512 }
  expect(leaves([header, small, header, long, header, small])).toEqual([
    1100,
    OWN_LEAF_BYTES_MIN,
    1000,
  ])
})

test('a leaf ends before it would decode to more than its limit', () => {
  const zeros = { blobBytes: 60, layerBytes: 1_000_000, contentDigest: 'f'.repeat(64) }
  expect(LEAF_LAYER_BYTES_MAX).toBe(2 << 20)
  expect(leaves([zeros, zeros, zeros, zeros, zeros])).toEqual([120, 120, 60])
})

test('two runs that meet go on with the same leaves', () => {
  const random = seeded(2)
  const sizes = Array.from({ length: 3000 }, () => 200 + random(9000))
  const run = sizes.map((blobBytes, name) => ({
    blobBytes,
    layerBytes: blobBytes,
    contentDigest: digestOf(name),
  }))
  const whole = leaves(run)
  for (const dropped of [1, 17, 400]) {
    const rest = leaves(run.slice(dropped))
    const tail = whole.slice(-(rest.length - 4))
    expect(rest.slice(4), `without ${dropped}`).toEqual(tail)
  }
})
