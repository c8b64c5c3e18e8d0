import { describe, expect, test } from 'vitest'
import { ReadAhead } from '../../../snapshotter/blobs/read-ahead.ts'
import { seeded } from '../../support/seeded.ts'

const KIB = 1024

/** Where `count` units of `bytes` bytes start. */
function startsOf(count: number, bytes: number): Float64Array {
  return Float64Array.from({ length: count + 1 }, (_, unit) => unit * bytes)
}

describe('what is fetched ahead of a reader', () => {
  test('is nothing for one who skips about', () => {
    const ahead = new ReadAhead(startsOf(1000, 256 * KIB))
    const random = seeded(3)
    const asked = Array.from({ length: 60 }, () => ahead.waitedFor(10 * random(100)))
    expect(asked.flat()).toEqual([])
  })

  test('begins with the fourth unit in a row, and is as much as he has read, up to 16 MiB', () => {
    const ahead = new ReadAhead(startsOf(1000, 256 * KIB))
    expect([100, 101, 102].flatMap((unit) => ahead.waitedFor(unit))).toEqual([])
    expect(ahead.waitedFor(103)).toEqual([104, 105, 106, 107])
    // He caught up with what was under way.
    expect(ahead.waitedFor(104)).toEqual([108, 109])
    const reaches = [110, 121, 143, 187, 251].map((unit) => {
      const units = ahead.waitedFor(unit)
      return (units.at(-1) ?? unit) - unit
    })
    expect(reaches).toEqual([11, 22, 44, 64, 64])
  })

  test('is asked for once, each unit in its order, and ends with the layer', () => {
    const ahead = new ReadAhead(startsOf(64, 1024 * KIB))
    const asked: number[] = []
    for (let unit = 0; unit < 64; unit++) asked.push(...ahead.waitedFor(unit))
    expect(asked).toEqual([...Array(60).keys()].map((unit) => unit + 4))
  })

  test('goes on where reads of one window come in another order, or one finds its unit here', () => {
    const ahead = new ReadAhead(startsOf(100, 512 * KIB))
    const asked = [1, 0, 2, 4, 3, 6].map((unit) => ahead.waitedFor(unit))
    expect(asked.flat()[0]).toBeGreaterThan(3)
    expect(asked.flat()).toEqual(asked.flat().toSorted((a, b) => a - b))
  })

  test('is told apart for four readers, and forgotten for one who has not read for longest', () => {
    const ahead = new ReadAhead(startsOf(1000, 256 * KIB))
    const readers = [100, 300, 500, 700]
    const asked = [0, 1, 2, 3].map((step) => readers.map((from) => ahead.waitedFor(from + step)))
    expect(asked.slice(0, 3).flat(2)).toEqual([])
    expect(asked[3]?.map((units) => units[0])).toEqual([104, 304, 504, 704])
    ahead.waitedFor(900)
    expect(ahead.waitedFor(104)).toEqual([])
    expect(ahead.waitedFor(505).length).toBeGreaterThan(0)
  })
})
