import { expect, test } from 'vitest'
import { LayerError } from '../../../snapshotter/errors.ts'
import {
  decodeStartBlocks,
  encodeStartBlocks,
  START_BLOCKS_BYTES_MAX,
  START_BLOCKS_MAX,
} from '../../../snapshotter/prefetch/start-blocks-list.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'

const cids = Array.from({ length: 5 }, (_, index) =>
  cidOf(Buffer.from([index]), 0x55 + 0x1b * (index % 2)),
)
const [manifest, node, leaf, blob] = cids
if (manifest === undefined || node === undefined || leaf === undefined || blob === undefined) {
  throw new Error('no CIDs')
}

const [MANIFEST, NODE, LEAF, BLOB] = [manifest, node, leaf, blob].map(String)

test('a list comes back as it was, in its order', () => {
  const blocks = [{ cid: manifest }, { cid: node, opens: blob }, { cid: leaf }]
  const bytes = encodeStartBlocks(blocks)
  expect(bytes.toString()).toBe(`${MANIFEST}\n${NODE} ${BLOB}\n${LEAF}\n`)
  const decoded = decodeStartBlocks(bytes)
  expect(decoded.map(({ cid, opens }) => [cid, opens].join(' ').trimEnd())).toEqual(
    bytes.toString().trimEnd().split('\n'),
  )
  expect(decodeStartBlocks(encodeStartBlocks([]))).toEqual([])
})

test('of more blocks than a list may have, the first are written', () => {
  const blocks = Array.from({ length: START_BLOCKS_MAX + 1 }, () => ({ cid: leaf, opens: blob }))
  const bytes = encodeStartBlocks(blocks)
  expect(bytes.length).toBeLessThan(START_BLOCKS_BYTES_MAX)
  expect(decodeStartBlocks(bytes)).toHaveLength(START_BLOCKS_MAX)
})

test.each([
  ['a line that is no CID', `${LEAF}\nnonsense\n`, /line 2 holds "nonsense", which is no CID/],
  ['a third word', `${LEAF} ${BLOB} ${LEAF}\n`, /line 1 holds/],
  ['an empty line', `${LEAF}\n\n${LEAF}\n`, /line 2 holds ""/],
  ['a blob that is no CID', `${LEAF} \n`, /line 1 holds ""/],
])('%s is refused by its number', async (_, text, message) => {
  const failure = await failureOf(() => decodeStartBlocks(Buffer.from(text)))
  expect(failure).toMatchObject({ name: 'LayerError', code: 'INVALID_ARGUMENT' })
  expect(failure.message).toMatch(message)
})

test('more lines or bytes than a list may have are refused', async () => {
  for (const text of ['\n'.repeat(START_BLOCKS_MAX + 2), 'x'.repeat(START_BLOCKS_BYTES_MAX + 1)]) {
    const failure = await failureOf(() => decodeStartBlocks(Buffer.from(text)))
    expect(failure).toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
  }
})

// Goal: nothing but a list or a refusal comes of any bytes. Method: change bytes of a good list at random.
test('whatever the bytes, a list is refused with a code or holds CIDs', () => {
  const random = seeded(23)
  const good = encodeStartBlocks(cids.map((cid) => ({ cid, opens: blob })))
  let [kept, refused] = [0, 0]
  const ends: string[] = []
  for (let round = 0; round < 5000; round++) {
    const bytes = Buffer.from(good)
    for (let change = 0; change < 1 + random(3); change++) {
      bytes[random(bytes.length)] = random(2) === 0 ? random(256) : 0x61 + random(26)
    }
    try {
      const blocks = decodeStartBlocks(bytes)
      kept += 1
      ends.push(blocks.every(({ cid }) => cid.bytes.length > 0) ? 'CIDs' : 'none')
    } catch (error) {
      refused += 1
      ends.push(error instanceof LayerError ? error.code : String(error))
    }
  }
  expect([...new Set(ends)].toSorted()).toEqual(['CIDs', 'INVALID_ARGUMENT'])
  expect(kept).toBeGreaterThan(100)
  expect(refused).toBeGreaterThan(100)
})
