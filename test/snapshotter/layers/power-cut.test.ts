import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { FragileDisk } from '../../support/fragile-disk.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import { indexedLayer, publishImage } from './published-image.ts'

const deadlineMs = 60_000

// As test/snapshotter/snapshots/power-cut.test.ts, with everything that makes an image's layers mountable.
test(
  'a power cut right after containerd was told of an image leaves a node that starts it, without asking for its tables again',
  async () => {
    const blocks = new MemoryBlocks()
    const contents = [1, 2].map((seed) => randomContent(seeded(seed), 300_000))
    const image = await publishImage(
      blocks,
      await Promise.all(
        contents.map((content, at) => indexedLayer(makeTar({ name: `file-${at}`, content }))),
      ),
    )
    const disks: FragileDisk[] = []
    const node = await LazyNode.open(blocks, {
      onRoot: (root, beside) => disks.push(FragileDisk.mount(root, beside)),
    })
    onTestFinished(() => node[Symbol.asyncDispose]())
    await node.pull(image)
    await node.snapshotter.snapshots.flushed()
    const [disk] = disks
    const left = disk?.cutPower() ?? ''
    await node.stop()
    disk?.replace(left)
    await node.start(blocks)
    expect(image.chainIds.map((chainId) => node.has(chainId))).toEqual([true, true])
    expect(node.snapshotter.layers().map(({ state }) => state)).toEqual(['ready', 'ready'])
    expect(node.log.sentences.filter((said) => said.includes('damaged'))).toEqual([])
    await using mounted = await node.mount(image)
    for (const [at, content] of contents.entries()) {
      expect(await readFile(join(mounted.path, `file-${at}`))).toEqual(Buffer.from(content))
    }
  },
  deadlineMs,
)

test(
  'no snapshot names a layer before the disk has the layer in its catalog',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [
      await indexedLayer(makeTar({ name: 'file', content: 'x' })),
    ])
    const node = await LazyNode.open(blocks)
    onTestFinished(() => node[Symbol.asyncDispose]())
    await node.stop()
    let disk = Promise.resolve()
    const claims = Promise.withResolvers<void>()
    const waits = Promise.withResolvers<void>()
    node.sync = () => {
      waits.resolve()
      return disk
    }
    await node.start(blocks)
    await node.serve(image)
    disk = claims.promise
    const pulled = node.pullLayers(image)
    await waits.promise
    await node.log.said('can be mounted')
    for (let turn = 0; turn < 50; turn++) await new Promise(setImmediate)
    expect(image.chainIds.map((chainId) => node.has(chainId))).toEqual([false])
    claims.resolve()
    await pulled
    expect(image.chainIds.map((chainId) => node.has(chainId))).toEqual([true])
  },
  deadlineMs,
)
