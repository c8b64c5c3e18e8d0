import { CID } from 'multiformats/cid'
import { create } from 'multiformats/hashes/digest'
import { expect, test } from 'vitest'
import { rankedName, rankHomes } from '../../../agent/cluster/rank-homes.ts'
import { cidOf } from '../../support/memory-blocks.ts'

const NODES = Array.from({ length: 20 }, (_, node) => `https://10.0.0.${node}:5082`)
const BLOCKS = Array.from({ length: 5_000 }, (_, block) => cidOf(Buffer.from(`block ${block}`)))

function ranking(cid: CID, nodes: readonly string[] = NODES): string[] {
  return rankHomes(cid.multihash.digest, nodes.map(rankedName)).map(({ name }) => name)
}

test('every node has the same order for a block, in whatever order it knows the nodes', () => {
  for (const cid of BLOCKS.slice(0, 100)) {
    expect(ranking(cid, NODES.toReversed())).toEqual(ranking(cid))
  }
  expect(ranking(BLOCKS[0] as CID).toSorted()).toEqual(NODES.toSorted())
})

// 250 blocks for each of 20 nodes, give or take 15.4 (binomial): four times that is seen once in 16,000 counts.
test('blocks are spread evenly over their first homes, and over the second ones of those that a node leaves behind', () => {
  const share = BLOCKS.length / NODES.length
  for (const count of countsOf(BLOCKS.map((cid) => ranking(cid)[0])).values()) {
    expect(Math.abs(count - share)).toBeLessThan(4 * Math.sqrt(share))
  }
  const left = BLOCKS.filter((cid) => ranking(cid)[0] === NODES[3])
  const inherited = countsOf(left.map((cid) => ranking(cid)[1]))
  expect(inherited.size).toBe(NODES.length - 1)
  expect(Math.max(...inherited.values())).toBeLessThan(0.15 * left.length)
})

test('when a node leaves, only blocks that it was home to move, and to those that came second', () => {
  const fewer = NODES.filter((name) => name !== NODES[3])
  for (const cid of BLOCKS.slice(0, 1_000)) {
    const before = ranking(cid)
    expect(ranking(cid, fewer)).toEqual(before.filter((name) => name !== NODES[3]))
  }
})

test('a block has one home by whatever CID it is asked for', () => {
  const [cid] = BLOCKS as [CID]
  const v0 = CID.createV0(create(0x12, cid.multihash.digest) as never)
  expect(ranking(v0)).toEqual(ranking(cid))
  expect(ranking(CID.createV1(0x70, cid.multihash))).toEqual(ranking(cid))
})

test('a digest that is too short to name a block has an order too', () => {
  const short = CID.createV1(0x55, create(0x12, Buffer.from('short')))
  expect(ranking(short).toSorted()).toEqual(NODES.toSorted())
})

function countsOf(names: readonly (string | undefined)[]): Map<string, number> {
  const counts = new Map<string, number>()
  for (const name of names) counts.set(name ?? '', (counts.get(name ?? '') ?? 0) + 1)
  return counts
}
