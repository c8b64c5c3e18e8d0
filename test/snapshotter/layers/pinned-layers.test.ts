import { expect, onTestFinished, test } from 'vitest'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import { indexedLayer, type PublishedImage, publishImage } from './published-image.ts'

const deadlineMs = 60_000
const LAYER_BYTES = 2_000_000

/** A store for one layer and a half, of which two images of a layer each are fetched whole, the pinned one first. */
async function setUp(
  isPinned: boolean,
): Promise<{ readonly node: LazyNode; readonly first: PublishedImage }> {
  const blocks = new MemoryBlocks()
  const publish = async (seed: number): Promise<PublishedImage> =>
    publishImage(blocks, [
      await indexedLayer(
        makeTar({ name: 'file', content: randomContent(seeded(seed), LAYER_BYTES) }),
      ),
    ])
  const [first, second] = [await publish(1), await publish(2)]
  const node = await LazyNode.open(blocks, {
    storeBytesMax: 1.5 * LAYER_BYTES,
    pinned: isPinned ? [first.root.toString()] : [],
  })
  onTestFinished(() => node[Symbol.asyncDispose]())
  const { signal } = new AbortController()
  for (const image of [first, second]) {
    await node.pull(image)
    await node.snapshotter.pull(image.root.toString(), { all: true, signal, onProgress: () => {} })
  }
  // What is evicted is evicted when it stops, at the latest.
  await node.stop()
  await node.start(blocks)
  return { node, first }
}

const presentOf = (node: LazyNode): number[] =>
  node.snapshotter.layers().map(({ presentBytes }) => presentBytes)

test(
  'a pinned image stays whole where another would have made room, and is told as pinned',
  async () => {
    const { node } = await setUp(true)
    const [pinned, other] = node.snapshotter.layers()
    expect(pinned).toMatchObject({ isPinned: true, isComplete: true })
    expect(other).toMatchObject({ isPinned: false, isComplete: false })
    const { node: without } = await setUp(false)
    expect(presentOf(without)[0]).toBeLessThan(LAYER_BYTES)
  },
  deadlineMs,
)

test(
  'garbage collection leaves it, and its layer is not removed by name',
  async () => {
    const { node, first } = await setUp(true)
    for (const page of node.snapshotter.snapshots.list([])) {
      for (const { name } of page) node.snapshotter.snapshots.remove(name)
    }
    await node.snapshotter.snapshots.cleanup()
    await node.snapshotter.collectGarbage(0)
    const [pinned, ...others] = node.snapshotter.layers()
    expect([pinned?.isComplete, others.length]).toEqual([true, 0])
    await expect(node.snapshotter.removeLayer(pinned?.blobDigest ?? '')).rejects.toThrow(
      'store.pinned',
    )
    expect(first.chainIds).toHaveLength(1)
  },
  deadlineMs,
)
