import { describe, expect, test } from 'vitest'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { type LayerTable, nameRanges } from '../../../snapshotter/prefetch/name-ranges.ts'
import { placeRanges } from '../../../snapshotter/prefetch/place-ranges.ts'
import { TarStreamWalk } from '../../../snapshotter/toc/walk-tar.ts'
import { makeTar, type TarPart } from '../../support/make-tar.ts'
import { seeded } from '../../support/seeded.ts'

/** A layer as its tar has it. */
function layerOf(...parts: TarPart[]): LayerTable & { readonly tar: Buffer } {
  const tar = makeTar(...parts)
  const walk = new TarStreamWalk()
  walk.push(tar)
  const toc = walk.end()
  return { tar, toc, diffId: digestOf(tar), layerSize: toc.layerSize }
}

function file(name: string, size: number, fill = name): TarPart {
  return { name, content: Buffer.alloc(size, fill) }
}

const whole = ({ layerSize }: LayerTable, layer = 0) => ({ layer, start: 0, end: layerSize })

describe('naming', () => {
  test('bytes of a layer are bytes of its files, and what lies between files is left out', () => {
    const layer = layerOf(file('a', 700), file('empty', 0), file('dir/b', 1000))
    const { ranges, layers } = nameRanges([layer], [whole(layer)])
    expect(layers).toEqual([{ diffId: layer.diffId, layerSize: layer.layerSize }])
    expect(
      ranges.map(({ path, fileOffset, length, fileSize }) => [path, fileOffset, length, fileSize]),
    ).toEqual([
      ['a', 0, 700, 700],
      ['dir/b', 0, 1000, 1000],
    ])
  })

  // Goal: a name leads to the same bytes. Method: cut them out of the tar by their place in it, and out of the file by its name.
  test('a name and a place stand for the same bytes, in the order of the ranges', () => {
    const random = seeded(17)
    const files = Array.from({ length: 30 }, (_, index) =>
      file(`f${index}`, random(9000), `${index}-`),
    )
    const layer = layerOf(...files)
    const contents = new Map(files.map(({ name, content }) => [name, Buffer.from(content ?? '')]))
    const asked = Array.from({ length: 200 }, () => {
      const start = random(layer.layerSize - 1)
      return {
        layer: 0,
        start,
        end: start + 1 + random(Math.min(5000, layer.layerSize - start - 1) || 1),
      }
    })
    for (const range of asked) {
      const { ranges } = nameRanges([layer], [range])
      for (const { path, fileOffset, layerOffset, length } of ranges) {
        expect(layerOffset).toBeGreaterThanOrEqual(range.start)
        expect(layerOffset + length).toBeLessThanOrEqual(range.end)
        const byName = contents.get(path)?.subarray(fileOffset, fileOffset + length)
        expect(byName).toEqual(layer.tar.subarray(layerOffset, layerOffset + length))
      }
    }
    const all = nameRanges([layer], asked).ranges
    expect(all).toEqual(asked.flatMap((range) => nameRanges([layer], [range]).ranges))
  })
})

describe('placing', () => {
  const base = layerOf(file('lib/libc.so', 3000), file('etc/os', 300))
  const app = layerOf(file('app/main', 2000), file('app/data', 5000), file('app/conf', 100))
  const list = nameRanges([base, app], [whole(app, 1), whole(base, 0)])
  const pathsOf = (placed: ReturnType<typeof placeRanges>): string[] =>
    placed.list.ranges.map(({ path }) => path)

  test('in the image that it was made of, a list needs no table of contents', () => {
    const image = [base, app].map(({ diffId, layerSize }) => ({ diffId, layerSize }))
    const placed = placeRanges(list, image)
    expect(placed.list).toEqual(list)
    expect(placed.dropped).toBe(0)
  })

  test('in an image that was built anew, unchanged files are found where they lie now, in the old order', () => {
    const rebuilt = layerOf(
      file('app/new', 900),
      file('app/data', 5000),
      file('app/main', 2000),
      file('app/conf', 101),
    )
    const placed = placeRanges(list, [base, rebuilt])
    expect(pathsOf(placed)).toEqual(['app/main', 'app/data', 'lib/libc.so', 'etc/os'])
    expect(placed.dropped).toBe(1)
    const [main] = placed.ranges
    // With the padding of its last block, which the kernel reads along.
    expect(rebuilt.tar.subarray(main?.start, main?.end)).toEqual(
      Buffer.concat([Buffer.alloc(2000, 'app/main'), Buffer.alloc(48)]),
    )
    expect(main?.layer).toBe(1)
  })

  test('a file is taken from the topmost layer that has it, and from none if that removes it', () => {
    const above = layerOf(file('app/main', 2000, 'above'), { name: 'app/.wh.data' })
    const below = layerOf(file('app/main', 2000), file('app/data', 5000))
    const placed = placeRanges(list, [below, above])
    expect(pathsOf(placed)).toEqual(['app/main'])
    expect(placed.ranges[0]?.layer).toBe(1)
  })

  test('a layer that is said to be larger than it is counts as another one', () => {
    const lie = { ...list, layers: list.layers.map((layer) => ({ ...layer, layerSize: 2 ** 40 })) }
    const outside = {
      ...lie,
      ranges: lie.ranges.map((range) => ({
        ...range,
        layerOffset: 2 ** 39,
        path: `no/${range.path}`,
      })),
    }
    expect(placeRanges(outside, [base, app])).toMatchObject({ ranges: [], dropped: 5 })
  })
})
