import { expect, test } from 'vitest'
import type { LayerBlob } from '../../../snapshotter/blobs/layer-blob.ts'
import type { LayerMap } from '../../../snapshotter/blobs/layer-map.ts'
import type { BlockRequest } from '../../../snapshotter/block-source.ts'
import { LeafSource } from '../../../snapshotter/layers/leaf-source.ts'
import { ReusedMemory } from '../../../snapshotter/reused-memory.ts'
import { cidOf } from '../../support/memory-blocks.ts'

const UNIT = 100_000
const request = { priority: 'background', signal: new AbortController().signal } as const

/** Two units, which come as 1s and 2s; stored as they are, or so that a unit is what was inverted. */
const source = (memory: ReusedMemory, decode: LayerMap['decode']): LeafSource => {
  const starts = Float64Array.of(0, UNIT, 2 * UNIT)
  const blob: LayerBlob = {
    cid: cidOf(Buffer.from('blob')),
    size: 2 * UNIT,
    leafStarts: starts,
    readRange: async ({ start }, { memory }: BlockRequest) =>
      (memory?.take(UNIT) ?? new Uint8Array(UNIT)).fill(1 + start / UNIT),
    async *stream() {},
    leafOf: () => undefined,
    toBytes: () => new Uint8Array(),
  }
  const map: LayerMap = {
    layerSize: 2 * UNIT,
    blobSize: 2 * UNIT,
    starts,
    blobRange: (unit) => ({ start: unit * UNIT, end: (unit + 1) * UNIT }),
    decode,
    toBytes: () => new Uint8Array(),
  }
  return new LeafSource(map, async () => blob, memory)
}

test('what a unit was decoded from makes room for the next one', async () => {
  using memory = new ReusedMemory()
  const parts = new Set<ArrayBufferLike>()
  const units = source(memory, async (_unit, part) => {
    parts.add(part.buffer)
    return part.map((byte) => ~byte)
  })
  const first = await units.fetchUnit(0, request)
  expect((await units.fetchUnit(1, request))[0]).toBe(253)
  expect(first[0]).toBe(254)
  expect(parts.size).toBe(1)
})

test('a unit that is stored as it is keeps its bytes when the next one comes', async () => {
  using memory = new ReusedMemory()
  const units = source(memory, (_unit, part) => part.subarray(0, UNIT))
  const first = await units.fetchUnit(0, request)
  expect((await units.fetchUnit(1, request))[0]).toBe(2)
  expect(first.every((byte) => byte === 1)).toBe(true)
})
