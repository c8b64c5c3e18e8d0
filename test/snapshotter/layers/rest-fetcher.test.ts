import { open as openFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, onTestFinished, test, vi } from 'vitest'
import { BlockError } from '../../../snapshotter/errors.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import { indexedLayer, type PublishedImage, publishImage } from './published-image.ts'

const deadlineMs = 60_000
const LAYER_BYTES = 2_000_000
const CHUNK_BYTES = 1024 ** 2
const CHUNKS = 16

/** Two layers that do not compress. */
async function publish(blocks: MemoryBlocks): Promise<PublishedImage> {
  const layers = [1, 2].map((seed) =>
    indexedLayer(
      makeTar({ name: `file-${seed}`, content: randomContent(seeded(seed), LAYER_BYTES) }),
    ),
  )
  return publishImage(blocks, await Promise.all(layers))
}

async function open(
  blocks: MemoryBlocks,
  options: Parameters<typeof LazyNode.open>[1],
): Promise<LazyNode> {
  const node = await LazyNode.open(blocks, options)
  onTestFinished(() => node[Symbol.asyncDispose]())
  return node
}

const areComplete = (node: LazyNode): boolean[] =>
  node.snapshotter.layers().map(({ isComplete }) => isComplete)

test(
  'once a container starts, the rest of its image is fetched, and its mounts need the agent no more',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publish(blocks)
    const node = await open(blocks, { fetchRest: true })
    await node.pull(image)
    expect(areComplete(node)).toEqual([false, false])
    await using _mounted = await node.mount(image)
    await vi.waitFor(() => expect(areComplete(node)).toEqual([true, true]), deadlineMs)
    await vi.waitFor(
      () => expect(node.snapshotter.mounts().map(({ kind }) => kind)).toEqual(['plain', 'plain']),
      deadlineMs,
    )
  },
  deadlineMs,
)

test(
  'nothing is fetched for it that others would have to go for from the store',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publish(blocks)
    const node = await open(blocks, { fetchRest: true, storeBytesMax: 1.5 * LAYER_BYTES })
    await node.pull(image)
    await using _mounted = await node.mount(image)
    await vi.waitFor(
      () => expect(node.log.sentences.join('\n')).toContain('others would have to go'),
      deadlineMs,
    )
    expect(areComplete(node).filter((isComplete) => isComplete).length).toBeLessThan(2)
  },
  deadlineMs,
)

test(
  'what cannot be had is said, and tried again when the next container starts',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publish(blocks)
    const node = await open(blocks, { fetchRest: true })
    await node.pull(image)
    const down = vi
      .spyOn(blocks, 'get')
      .mockRejectedValue(new BlockError('UNAVAILABLE', 'the network is down', {}))
    await using _first = await node.mount(image)
    await vi.waitFor(
      () =>
        expect(node.log.sentences.filter((each) => each.includes('is not here'))).toHaveLength(2),
      deadlineMs,
    )
    down.mockRestore()
    await using _second = await node.mount(image)
    await vi.waitFor(() => expect(areComplete(node)).toEqual([true, true]), deadlineMs)
  },
  deadlineMs,
)

test(
  'of a layer of which a container has read more than half, the rest is fetched without being asked for',
  async () => {
    const blocks = new MemoryBlocks()
    const content = randomContent(seeded(3), CHUNKS * CHUNK_BYTES)
    const layer = await indexedLayer(makeTar({ name: 'large', content }))
    const image = await publishImage(blocks, [layer])
    const node = await open(blocks, {})
    await node.pull(image)
    await using mounted = await node.mount(image)
    await using file = await openFile(join(mounted.path, 'large'))
    // Here and there, so that nothing of it is fetched because it comes next.
    for (let step = 0; step < 0.7 * CHUNKS; step++) {
      const at = ((7 * step) % CHUNKS) * CHUNK_BYTES
      const part = Buffer.alloc(CHUNK_BYTES)
      await file.read(part, 0, CHUNK_BYTES, at)
      expect(part.equals(content.subarray(at, at + CHUNK_BYTES))).toBe(true)
    }
    await vi.waitFor(() => expect(areComplete(node)).toEqual([true]), deadlineMs)
  },
  deadlineMs,
)
