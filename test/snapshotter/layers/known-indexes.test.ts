import { expect, test } from 'vitest'
import { KnownIndexes } from '../../../snapshotter/layers/known-indexes.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'

const request = { priority: 'foreground', signal: AbortSignal.timeout(30_000) } as const
const layer = digestOf(Buffer.from('layer'))
const other = digestOf(Buffer.from('other'))

function knownBy(
  roots: readonly string[],
  blocks: MemoryBlocks,
): { indexes: KnownIndexes; warnings: string[] } {
  const warnings: string[] = []
  const log = { warn: (_facts: object, sentence: string) => void warnings.push(sentence) }
  return { indexes: new KnownIndexes(roots, { blocks, log }), warnings }
}

test('of several roots each gives its indexes, the first one where two name a layer, and none is asked twice', async () => {
  const blocks = new MemoryBlocks()
  const first = await blocks.addDirectory({ [`indexes/${layer}`]: Buffer.from('first') })
  const second = await blocks.addDirectory({
    [`indexes/${layer}`]: Buffer.from('second'),
    [`indexes/${other}`]: Buffer.from('other'),
  })
  const { indexes } = knownBy([first.toString(), second.toString()], blocks)
  const all = await indexes.all(request)
  expect([...all.keys()].toSorted()).toEqual([layer, other].toSorted())
  expect(all.get(layer)?.toString()).toBe(cidOf(Buffer.from('first')).toString())
  const asked = blocks.asked.length
  await indexes.all(request)
  expect(blocks.asked).toHaveLength(asked)
})

test('a root that nobody has is told of once, and does not hide the others', async () => {
  const blocks = new MemoryBlocks()
  const root = await blocks.addDirectory({ [`indexes/${layer}`]: Buffer.from('first') })
  const lost = cidOf(Buffer.from('lost'), 0x70).toString()
  const { indexes, warnings } = knownBy([lost, root.toString()], blocks)
  for (let time = 0; time < 3; time++) expect((await indexes.all(request)).size).toBe(1)
  expect(warnings).toHaveLength(1)
  expect(warnings[0]).toMatch(`the indexes under ${lost} cannot be read`)
})

test('a root without indexes has none', async () => {
  const blocks = new MemoryBlocks()
  const root = await blocks.addDirectory({ 'manifests/latest': Buffer.from('{}') })
  const { indexes } = knownBy([root.toString()], blocks)
  expect((await indexes.all(request)).size).toBe(0)
})
