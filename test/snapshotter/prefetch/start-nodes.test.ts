import type { CID } from 'multiformats/cid'
import { expect, test } from 'vitest'
import {
  decodeStartNodes,
  encodeStartNodes,
  fittingNodes,
  START_NODES_BYTES_MAX,
} from '../../../snapshotter/prefetch/start-nodes.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'

const hashOf = ({ multihash }: CID): string => Buffer.from(multihash.bytes).toString('hex')

function nodesOf(...sizes: readonly number[]) {
  return sizes.map((size, index) => {
    const bytes = Buffer.alloc(size, `node ${index}`)
    return { cid: cidOf(bytes, index % 2 === 0 ? 0x55 : 0x70), bytes }
  })
}

test('nodes come back as they were, in their order', async () => {
  const nodes = nodesOf(10, 0, 3000, 70_000)
  const decoded = await decodeStartNodes(await encodeStartNodes(nodes))
  expect(decoded.map(({ cid }) => cid.toString())).toEqual(nodes.map(({ cid }) => cid.toString()))
  expect(decoded.map(({ bytes }) => Buffer.from(bytes))).toEqual(nodes.map(({ bytes }) => bytes))
  expect(await decodeStartNodes(await encodeStartNodes([]))).toEqual([])
})

test('as many are taken as one leaf of a file holds', async () => {
  const nodes = nodesOf(...Array.from({ length: 300 }, () => 2000))
  const fitting = fittingNodes(nodes)
  const bytes = await encodeStartNodes(nodes.slice(0, fitting))
  expect(bytes.length).toBeLessThanOrEqual(START_NODES_BYTES_MAX)
  expect(bytes.length).toBeGreaterThan(START_NODES_BYTES_MAX - 4000)
  expect(fittingNodes(nodesOf(10, 20))).toBe(2)
  expect(fittingNodes(nodesOf(START_NODES_BYTES_MAX, 20))).toBe(0)
})

test('more bytes than that are refused before they are looked at', async () => {
  const failure = await failureOf(() => decodeStartNodes(Buffer.alloc(START_NODES_BYTES_MAX + 1)))
  expect(failure).toMatchObject({ name: 'LayerError', code: 'RESOURCE_EXHAUSTED' })
})

// Goal: no byte is taken for a block that it is not. Method: change bytes of a good CAR at random.
test('whatever the bytes, they are refused with a code or are what their CIDs say', async () => {
  const random = seeded(29)
  const nodes = nodesOf(40, 60, 80)
  const known = new Map(nodes.map(({ cid, bytes }) => [hashOf(cid), bytes]))
  const good = Buffer.from(await encodeStartNodes(nodes))
  const ends = new Map<string, number>()
  const note = (end: string): void => void ends.set(end, (ends.get(end) ?? 0) + 1)
  for (let round = 0; round < 3000; round++) {
    const bytes = Buffer.from(good)
    for (let change = 0; change < random(3); change++) bytes[random(bytes.length)] = random(256)
    const cut = random(8) === 0 ? bytes.subarray(0, random(bytes.length)) : bytes
    try {
      const decoded = await decodeStartNodes(cut)
      const isSame = decoded.every(({ cid, bytes }) => known.get(hashOf(cid))?.equals(bytes))
      note(isSame ? 'same' : 'other')
    } catch (error) {
      note(error instanceof Error && 'code' in error ? String(error.code) : String(error))
    }
  }
  const told = [...ends.keys()].toSorted()
  expect(
    told.filter((end) => !['DATA_LOSS', 'INVALID_ARGUMENT', 'UNIMPLEMENTED'].includes(end)),
  ).toEqual(['same'])
  expect(ends.get('INVALID_ARGUMENT')).toBeGreaterThan(100)
  expect(ends.get('DATA_LOSS')).toBeGreaterThan(100)
})
