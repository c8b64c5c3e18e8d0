import { expect, onTestFinished, test } from 'vitest'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import { indexedLayer, type PublishedImage, publishImage } from './published-image.ts'

const deadlineMs = 60_000
const LAYER_BYTES = 2_000_000

/** A store for one layer and a half, for which four images of a layer each are fetched whole, the pinned one first. */
async function setUp(): Promise<LazyNode> {
  const blocks = new MemoryBlocks()
  const publish = async (seed: number): Promise<PublishedImage> =>
    publishImage(blocks, [
      await indexedLayer(
        makeTar({ name: 'file', content: randomContent(seeded(seed), LAYER_BYTES) }),
      ),
    ])
  const images = await Promise.all([1, 2, 3, 4].map(publish))
  const node = await LazyNode.open(blocks, {
    storeBytesMax: 1.5 * LAYER_BYTES,
    pinned: images.slice(0, 1).map(({ root }) => root.toString()),
  })
  onTestFinished(() => node[Symbol.asyncDispose]())
  const { signal } = new AbortController()
  for (const image of images) {
    await node.pull(image)
    await node.snapshotter.pull(image.root.toString(), { all: true, signal, onProgress: () => {} })
  }
  // What is evicted is evicted when it stops, at the latest.
  await node.stop()
  await node.start(blocks)
  return node
}

test(
  'a pinned image stays whole where another would have made room, and is told as pinned',
  async () => {
    const node = await setUp()
    const [pinned, ...others] = node.snapshotter.layers().toSorted((a, b) => a.id - b.id)
    expect(pinned).toMatchObject({ isPinned: true, isComplete: true })
    expect(others.map(({ isPinned }) => isPinned)).toEqual([false, false, false])
    expect(others.filter(({ isComplete }) => isComplete).length).toBeLessThan(2)
  },
  deadlineMs,
)

test(
  'garbage collection leaves it, and its layer is not removed by name',
  async () => {
    const node = await setUp()
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
  },
  deadlineMs,
)
