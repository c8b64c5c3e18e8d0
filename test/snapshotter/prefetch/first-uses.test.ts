import { expect, test } from 'vitest'
import { FirstUses } from '../../../snapshotter/prefetch/first-uses.ts'
import { seeded } from '../../support/seeded.ts'

const NO_LIMIT = { bytesMax: Number.POSITIVE_INFINITY, rangesMax: Number.POSITIVE_INFINITY }

// Goal: the order of first use is kept and no byte is named twice. Method: beside it, a list of cells of 512 bytes in the order
// in which they were first touched, slow and plainly right.
test('each byte is noted once, where it was first read', () => {
  const random = seeded(5)
  const uses = new FirstUses(NO_LIMIT)
  const touched: string[] = []
  for (let read = 0; read < 400; read++) {
    const layer = random(3)
    const start = random(200) * 512
    const end = start + (1 + random(12)) * 512
    const isNew = uses.add({ layer, start, end })
    const cells = cellsOf({ layer, start, end }).filter((cell) => !touched.includes(cell))
    touched.push(...cells)
    expect(isNew, `read ${read}`).toBe(cells.length > 0)
  }
  expect(uses.ranges.flatMap(cellsOf)).toEqual(touched)
  expect(uses.bytes).toBe(touched.length * 512)
})

test('reads that follow each other are one range, across layers they are not', () => {
  const uses = new FirstUses(NO_LIMIT)
  uses.add({ layer: 1, start: 0, end: 4096 })
  uses.add({ layer: 1, start: 4096, end: 5000 })
  uses.add({ layer: 2, start: 5000, end: 6000 })
  expect(uses.ranges).toEqual([
    { layer: 1, start: 0, end: 5000 },
    { layer: 2, start: 5000, end: 6000 },
  ])
})

test('beyond its bytes or ranges nothing is noted', () => {
  const byBytes = new FirstUses({ ...NO_LIMIT, bytesMax: 1024 })
  byBytes.add({ layer: 1, start: 0, end: 2 ** 30 })
  expect(byBytes).toMatchObject({ bytes: 1024, isFull: true })
  const byRanges = new FirstUses({ ...NO_LIMIT, rangesMax: 2 })
  for (const start of [0, 8192, 4096]) byRanges.add({ layer: 1, start, end: start + 512 })
  expect(byRanges.ranges.map(({ start }) => start)).toEqual([0, 8192])
})

function cellsOf({ layer, start, end }: { layer: number; start: number; end: number }): string[] {
  return Array.from({ length: (end - start) / 512 }, (_, cell) => `${layer}:${start / 512 + cell}`)
}
