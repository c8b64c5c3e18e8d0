import { join } from 'node:path'
import type { CID } from 'multiformats/cid'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { BlockCache } from '../../../agent/cluster/block-cache.ts'
import { BlockHomes } from '../../../agent/cluster/block-homes.ts'
import { KeptBlocks } from '../../../agent/cluster/kept-blocks.ts'
import { rankedName, rankHomes } from '../../../agent/cluster/rank-homes.ts'
import { type BlockProvider, ProviderHealth } from '../../../agent/ipfs/block-provider.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'
import { Scratch } from '../../support/scratch.ts'

const scratch = Scratch.open('block-homes')
afterAll(() => scratch[Symbol.asyncDispose]())

const OTHERS = ['a', 'b', 'c', 'd'] as const
const SELF = 'self'
let kept: KeptBlocks
let peers: ReadonlyMap<string, BlockProvider>

beforeAll(async () => {
  const log = { warn: () => undefined }
  const cache = await BlockCache.open(join(scratch.dir, 'blocks'), 1_000, { log })
  kept = new KeptBlocks({ origin: new MemoryBlocks(), cache })
})
beforeEach(() => {
  const get = (): Promise<never> => Promise.reject(new Error('nobody is asked here'))
  peers = new Map(
    OTHERS.map((name) => [name, { name, kind: 'cluster', health: new ProviderHealth(), get }]),
  )
})

/** A block to which this node is home number `place`, and the others in their order. */
function blockAt(place: number): { cid: CID; others: string[] } {
  for (let attempt = 0; ; attempt++) {
    const cid = cidOf(Buffer.from(`block ${attempt}`))
    const ranked = rankHomes(cid.multihash.digest, [SELF, ...OTHERS].map(rankedName)).map(
      ({ name }) => name,
    )
    if (ranked.indexOf(SELF) === place) return { cid, others: ranked.toSpliced(place, 1) }
  }
}

function homesOf(self: string | undefined): BlockHomes {
  const homes = new BlockHomes(kept)
  homes.follow(self, peers)
  return homes
}

function orderOf(cid: CID): Record<'first' | 'spare', string[]> {
  const { first, spare } = homesOf(SELF).orderFor(cid)
  return { first: first.map(({ name }) => name), spare: spare.map(({ name }) => name) }
}

test.each([0, 1, 2, 3, 4])(
  'a node that is home number %i asks the ones before it, two at most, then the origin; of those after it, when that is away, as many as are left of two',
  (place) => {
    const { cid, others } = blockAt(place)
    const ahead = Math.min(place, 2)
    expect(orderOf(cid)).toEqual({
      first: [...others.slice(0, ahead), 'this node'],
      spare: others.slice(ahead, 2),
    })
  },
)

test('those that failed lately or lied are no home, and are asked after all others', () => {
  const { cid, others } = blockAt(4)
  const [liar = '', resting = '', good = '', last = ''] = others
  peers.get(liar)?.health.sentWrongBytes()
  peers.get(resting)?.health.failed()
  expect(orderOf(cid).first).toEqual([good, last, 'this node'])
  peers.get(good)?.health.failed()
  expect(orderOf(cid)).toEqual({ first: [last, 'this node'], spare: [resting] })
  peers.get(last)?.health.sentWrongBytes()
  expect(orderOf(cid)).toEqual({ first: ['this node'], spare: [resting, good] })
})

test('what is here or on its way is asked of no other node', async () => {
  const { cid } = blockAt(3)
  const { signal } = new AbortController()
  const failing = kept.shared(cid, { priority: 'background', signal })
  expect(orderOf(cid).first).toEqual(['this node'])
  await expect(failing).rejects.toThrow('no block')
  expect(orderOf(cid).first).toHaveLength(3)
})

test('a node that is none to the others asks two of them first, and has no share of its own', () => {
  for (const place of [0, 1, 2, 3, 4]) {
    const { cid, others } = blockAt(place)
    // Without itself the order of the others is the same.
    expect(
      homesOf(undefined)
        .orderFor(cid)
        .first.map(({ name }) => name),
    ).toEqual([...others.slice(0, 2), 'this node'])
  }
})

test('a node that knows no other asks the origin', () => {
  peers = new Map()
  expect(orderOf(blockAt(2).cid)).toEqual({ first: ['this node'], spare: [] })
})
