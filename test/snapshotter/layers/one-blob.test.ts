import { rmSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import { gzipLayer, indexedLayer, plainLayer, publishImage } from './published-image.ts'

// A layer is kept under the CID of its blob. What an image says of that blob beside its CID, the diff ID and where its
// table of contents lies, is the image's word, and must not become another image's.

const deadlineMs = 60_000
const shell = randomContent(seeded(3), 900_000)
const tar = makeTar({ name: 'bin/sh', content: shell })
const other = makeTar({ name: 'bin/sh', content: randomContent(seeded(4), 900_000) })

async function openNode(blocks: MemoryBlocks): Promise<LazyNode> {
  const node = await LazyNode.open(blocks)
  onTestFinished(() => node[Symbol.asyncDispose]())
  return node
}

describe('one blob of which two images claim different diff IDs', () => {
  test.each([
    ['lazily', indexedLayer],
    ['whole', gzipLayer],
  ] as const)(
    'an image cannot pass a layer that is here, read %s, for a well-known one',
    async (_, layerOf) => {
      const blocks = new MemoryBlocks()
      const layer = await layerOf(other)
      const honest = await publishImage(blocks, [layer])
      const liar = await publishImage(blocks, [{ ...layer, diffId: digestOf(tar) }])
      const wellKnown = await publishImage(blocks, [plainLayer(tar)])
      expect(liar.chainIds).toEqual(wellKnown.chainIds)
      const node = await openNode(blocks)
      await node.pull(honest)
      expect(await failureOf(() => node.pull(liar))).toMatchObject({ code: 'DATA_LOSS' })
      await node.pull(wellKnown)
      await using mounted = await node.mount(wellKnown)
      expect((await readFile(join(mounted.path, 'bin/sh'))).equals(shell)).toBe(true)
      await using before = await node.mount(honest)
      expect(await readFile(join(before.path, 'bin/sh'))).toHaveLength(900_000)
    },
    deadlineMs,
  )

  test(
    'of two that are pulled at once the liar is refused',
    async () => {
      const blocks = new MemoryBlocks()
      const layer = await indexedLayer(other)
      const honest = await publishImage(blocks, [layer])
      const liar = await publishImage(blocks, [{ ...layer, diffId: digestOf(tar) }])
      const node = await openNode(blocks)
      const [first, second] = await Promise.allSettled([node.pull(honest), node.pull(liar)])
      expect([first?.status, second?.status]).toEqual(['fulfilled', 'rejected'])
    },
    deadlineMs,
  )

  test(
    'a layer whose files were lost is made again as it was, not as the liar calls it',
    async () => {
      const blocks = new MemoryBlocks()
      const layer = gzipLayer(other)
      const honest = await publishImage(blocks, [layer])
      const liar = await publishImage(blocks, [{ ...layer, diffId: digestOf(tar) }])
      const node = await openNode(blocks)
      await node.pull(honest)
      await node.serve(liar)
      await node.stop()
      rmSync(join(node.root, 'layers', '1'), { recursive: true })
      await node.start(blocks)
      await using mounted = await node.mount(honest)
      expect(await readFile(join(mounted.path, 'bin/sh'))).toHaveLength(900_000)
    },
    deadlineMs,
  )
})

describe('one blob of which two images say that its table of contents lies elsewhere', () => {
  test(
    'the same words in both are no reason to fetch the layer whole',
    async () => {
      const blocks = new MemoryBlocks()
      const honest = await indexedLayer(other)
      const annotations = { ...honest.annotations, 'org.example.built-by': 'another tool' }
      const first = await publishImage(blocks, [honest])
      const second = await publishImage(blocks, [{ ...honest, annotations }])
      const node = await openNode(blocks)
      await node.pull(first)
      await node.pull(second)
      expect(node.snapshotter.layers()[0]).toMatchObject({ isComplete: false, verified: false })
    },
    deadlineMs,
  )

  test(
    'where they differ, the layer is fetched whole and checked before the second is handed out',
    async () => {
      const blocks = new MemoryBlocks()
      const honest = await indexedLayer(other)
      const without = { blob: honest.blob, diffId: honest.diffId }
      const first = await publishImage(blocks, [honest])
      const second = await publishImage(blocks, [without])
      const node = await openNode(blocks)
      await node.pull(first)
      expect(node.snapshotter.layers()[0]).toMatchObject({ verified: false })
      await node.serve(second)
      expect(node.snapshotter.layers()[0]).toMatchObject({ state: 'ready', verified: true })
    },
    deadlineMs,
  )

  test(
    'and when both are known before either is pulled, before the first is',
    async () => {
      const blocks = new MemoryBlocks()
      const honest = await indexedLayer(other)
      const first = await publishImage(blocks, [honest])
      const second = await publishImage(blocks, [{ blob: honest.blob, diffId: honest.diffId }])
      const node = await openNode(blocks)
      for (const image of [second, first]) await node.serve(image)
      await node.pull(first)
      expect(node.snapshotter.layers()[0]).toMatchObject({ state: 'ready', verified: true })
    },
    deadlineMs,
  )
})
