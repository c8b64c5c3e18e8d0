import { createHash } from 'node:crypto'
import { gzipSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { CodedError, LayerError } from '../../../snapshotter/errors.ts'
import { GzipIndexer } from '../../../snapshotter/toc/gzip/gzip-indexer.ts'
import type { GzipLayerMap } from '../../../snapshotter/toc/gzip/gzip-layer-map.ts'
import type { LayerToc } from '../../../snapshotter/toc/layer-toc.ts'
import { sameToc } from '../../../snapshotter/toc/same-toc.ts'
import {
  decodeSideIndex,
  encodeSideIndex,
  SIDE_INDEX_BYTES_MAX,
} from '../../../snapshotter/toc/side-index.ts'
import { TarStreamWalk } from '../../../snapshotter/toc/walk-tar.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar, type TarPart } from '../../support/make-tar.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { indexedLayerOf, sideIndexOf } from '../../support/side-index-of.ts'

const CHECKSUM_BYTES = 32

/** Many short spans, so that a small blob has what a large one has. */
const CHECKPOINT_BYTES = 4 * 1024

type Sample = {
  readonly tar: Buffer
  readonly blob: Buffer
  readonly map: GzipLayerMap
  readonly toc: LayerToc
  readonly stored: Uint8Array
}

function sample(tar: Buffer): Sample {
  const blob = gzipSync(tar)
  const indexer = new GzipIndexer({ outputBytesMax: 1e9, checkpointBytes: CHECKPOINT_BYTES })
  const walk = new TarStreamWalk()
  for (const bytes of indexer.push(blob)) walk.push(bytes)
  const map = indexer.finish()
  const toc = walk.end()
  const layer = indexedLayerOf(blob, tar)
  return { tar, blob, map, toc, stored: encodeSideIndex(layer, { map, toc }) }
}

/** 300 KB of files. */
function treeTar(seed: number): Buffer {
  const random = seeded(seed)
  const file = (_: unknown, index: number): TarPart => ({
    name: `d${random(4)}/file-${index}`,
    uid: random(70_000),
    mtime: random(2 ** 31),
    content: randomContent(random, random(20_000)),
  })
  return makeTar(...Array.from({ length: 30 }, file))
}

function layerOf({ blob, tar }: Sample): ReturnType<typeof indexedLayerOf> {
  return indexedLayerOf(blob, tar)
}

/** The same bytes with a checksum that fits: what somebody who means harm would write. */
function resealed(stored: Uint8Array): Uint8Array {
  const body = stored.subarray(0, -CHECKSUM_BYTES)
  return Buffer.concat([body, createHash('sha256').update(body).digest()])
}

/** One to four changes: bits, bytes, numbers, pieces removed, doubled or put elsewhere. */
function mutated(bytes: Uint8Array, random: (max: number) => number): Uint8Array {
  let changed = Buffer.from(bytes)
  for (let count = 1 + random(4); count > 0; count--) {
    const at = random(changed.length)
    const length = 1 + random(Math.min(64, changed.length - at))
    switch (random(6)) {
      case 0:
        changed[at] = (changed[at] ?? 0) ^ (1 << random(8))
        break
      case 1:
        changed[at] = random(256)
        break
      case 2:
        changed.fill(random(2) * 255, at, at + length)
        break
      case 3:
        changed = Buffer.concat([changed.subarray(0, at), changed.subarray(at + length)])
        break
      case 4:
        changed = Buffer.concat([changed.subarray(0, at + length), changed.subarray(at)])
        break
      default:
        changed.copyWithin(random(changed.length), at, at + length)
    }
    if (changed.length === 0) return changed
  }
  return changed
}

/** Decodes every unit: how many refused, and that none made other bytes than the tar's. */
function decodeAll(map: GzipLayerMap, { blob, tar }: Sample): { refused: number } {
  let refused = 0
  for (let unit = 0; unit < map.starts.length - 1; unit++) {
    const { start, end } = map.blobRange(unit)
    try {
      const bytes = map.decode(unit, blob.subarray(start, end))
      const expected = tar.subarray(map.starts[unit], map.starts[unit + 1])
      expect(expected.equals(bytes), `unit ${unit}`).toBe(true)
    } catch (error) {
      if (!(error instanceof LayerError)) throw error
      refused++
    }
  }
  return { refused }
}

const one = sample(treeTar(1))
const other = sample(treeTar(2))

describe('a side index', () => {
  test('gives back the table of contents, and every part of the tar from a part of the blob', () => {
    const { map, toc } = decodeSideIndex(one.stored, layerOf(one))
    expect(sameToc(toc, one.toc)).toBeUndefined()
    expect(map.starts.length - 1).toBeGreaterThan(5)
    expect(decodeAll(map, one)).toEqual({ refused: 0 })
    const random = seeded(3)
    for (let read = 0; read < 200; read++) {
      const at = random(one.tar.length)
      const unit = map.starts.findLastIndex((start) => start <= at)
      const { start, end } = map.blobRange(unit)
      const within = at - (map.starts[unit] ?? 0)
      expect(map.decode(unit, one.blob.subarray(start, end))[within]).toBe(one.tar[at])
    }
  })

  test('is the same bytes whoever makes it', async () => {
    const [first, second] = [
      await sideIndexOf(one.blob, one.tar),
      await sideIndexOf(one.blob, one.tar),
    ]
    expect(Buffer.from(first).equals(second)).toBe(true)
  })

  test('of an empty layer is one too', async () => {
    const tar = Buffer.alloc(1024)
    const blob = gzipSync(tar)
    const stored = await sideIndexOf(blob, tar)
    expect(decodeSideIndex(stored, indexedLayerOf(blob, tar)).toc.entries).toEqual([])
  })
})

describe('a side index is refused', () => {
  test('for another layer: other blob, other size, other tar', async () => {
    const layer = layerOf(one)
    const otherLayer = layerOf(other)
    for (const asked of [
      otherLayer,
      { ...layer, blobDigest: otherLayer.blobDigest },
      { ...layer, blobSize: layer.blobSize + 1 },
      { ...layer, diffId: otherLayer.diffId },
    ]) {
      const failure = await failureOf(() => decodeSideIndex(one.stored, asked))
      expect(failure).toMatchObject({ name: 'LayerError', code: 'INVALID_ARGUMENT' })
      expect(failure.message).toContain('it is of another layer')
    }
  })

  test('where its seek index and its table of contents are not of one layer', async () => {
    const short = sample(makeTar({ name: 'short' }))
    const layer = layerOf(one)
    const crossed = [
      encodeSideIndex(layer, { map: one.map, toc: short.toc }),
      encodeSideIndex(layer, { map: short.map, toc: one.toc }),
    ]
    for (const stored of crossed) {
      const failure = await failureOf(() => decodeSideIndex(stored, layer))
      expect(failure).toMatchObject({ name: 'LayerError', code: 'INVALID_ARGUMENT' })
    }
  })

  test('cut off at any byte, with or without a checksum that fits', async () => {
    for (let end = 0; end < one.stored.length; end += 97) {
      const cut = one.stored.subarray(0, end)
      for (const stored of end > CHECKSUM_BYTES ? [cut, resealed(cut)] : [cut]) {
        const failure = await failureOf(() => decodeSideIndex(stored, layerOf(one)))
        expect(failure).toMatchObject({ name: 'LayerError', code: 'DATA_LOSS' })
      }
    }
  })

  test('of a later format, in words that say so', async () => {
    const later = Buffer.from(one.stored)
    later[8] = 2
    const failure = await failureOf(() => decodeSideIndex(resealed(later), layerOf(one)))
    expect(failure).toMatchObject({ name: 'LayerError', code: 'UNIMPLEMENTED' })
  })

  test('that is longer than any layer needs', async () => {
    const long = new Uint8Array(SIDE_INDEX_BYTES_MAX + 1)
    const failure = await failureOf(() => decodeSideIndex(long, layerOf(one)))
    expect(failure).toMatchObject({ name: 'LayerError', code: 'RESOURCE_EXHAUSTED' })
  })
})

test('a seek index of another layer under this layer’s name makes no byte', () => {
  const layer = layerOf(one)
  const toc = { ...one.toc, layerSize: other.map.layerSize, entries: [] }
  const forged = encodeSideIndex(
    { ...layer, blobSize: other.map.blobSize },
    { map: other.map, toc },
  )
  const { map } = decodeSideIndex(forged, { ...layer, blobSize: other.map.blobSize })
  expect(decodeAll(map, one).refused).toBe(map.starts.length - 1)
})

// Goal: nothing that can be done to the bytes of an index makes a wrong byte of the layer. Method: thousands of random changes.
// As they come, the checksum shows each. With the checksum made to fit, what still parses must refuse the spans that it
// is wrong about; and a table of contents that came out different is what the check of the whole layer finds (sameToc).
test('a change anywhere shows: at once, when a span is decoded, or when the whole layer is checked', () => {
  const random = seeded(7)
  const outcomes = { refused: 0, spans: 0, toc: 0, same: 0 }
  for (let round = 0; round < 6000; round++) {
    const changed = mutated(one.stored, random)
    if (Buffer.from(one.stored).equals(changed)) continue
    expect(() => decodeSideIndex(changed, layerOf(one)), `round ${round}`).toThrow(LayerError)
    if (changed.length <= CHECKSUM_BYTES) continue
    try {
      const { map, toc } = decodeSideIndex(resealed(changed), layerOf(one))
      if (decodeAll(map, one).refused > 0) outcomes.spans++
      else if (sameToc(toc, one.toc) !== undefined) outcomes.toc++
      else outcomes.same++
    } catch (error) {
      if (!(error instanceof CodedError)) throw error
      outcomes.refused++
    }
  }
  expect(outcomes.refused).toBeGreaterThan(1000)
  expect(outcomes.spans).toBeGreaterThan(100)
}, 120_000)
