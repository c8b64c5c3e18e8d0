import { writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CID } from 'multiformats/cid'
import { expect, onTestFinished, test } from 'vitest'
import { BlobStore } from '../../../snapshotter/blobs/blob-store.ts'
import { DEFAULT_FETCH_LIMITS, FetchQueue } from '../../../snapshotter/blobs/fetch-queue.ts'
import type { UnitCoding } from '../../../snapshotter/blobs/layer-map.ts'
import type { Fetched } from '../../../snapshotter/blobs/lazy-layer.ts'
import { fuseInode } from '../../../snapshotter/layers/layer-places.ts'
import { type LeafUnits, SharedLeaves } from '../../../snapshotter/layers/shared-leaves.ts'
import { damageUnits } from '../../support/damage-units.ts'
import { listeningLog } from '../../support/fuse-mount.ts'
import { makeTar, type TarPart } from '../../support/make-tar.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { Scratch } from '../../support/scratch.ts'
import { seeded } from '../../support/seeded.ts'
import { randomLayer, unitBytes } from '../blobs/random-layer.ts'
import { LazyNode } from './lazy-node.ts'
import { type PublishedImage, plainLayer, publishImage } from './published-image.ts'
import { pushTars } from './pushed-image.ts'

const deadlineMs = 60_000
const { signal } = new AbortController()

/** Sixty files, every second one large enough to have leaves of its own. */
function files(seed: number): (TarPart & { readonly content: Buffer })[] {
  const random = seeded(seed)
  return Array.from({ length: 60 }, (_, index) => ({
    name: `lib/${index}`,
    mtime: 1_600_000_000 + index,
    content: randomContent(random, index % 2 === 0 ? 20_000 : 300_000),
  }))
}

async function openNode(blocks: MemoryBlocks): Promise<LazyNode> {
  const node = await LazyNode.open(blocks)
  onTestFinished(() => node[Symbol.asyncDispose]())
  return node
}

/** Fetches all of an image, and tells how many bytes of blocks that took. */
async function fetchWhole(
  node: LazyNode,
  blocks: MemoryBlocks,
  { root }: PublishedImage,
): Promise<number> {
  blocks.asked.length = 0
  await node.snapshotter.pull(root.toString(), { all: true, signal, onProgress: () => {} })
  const sizes = blocks.asked.map((cid) => blocks.blocks.get(cid)?.length ?? 0)
  return sizes.reduce((sum, bytes) => sum + bytes, 0)
}

/** Two versions of an app: of sixty files two have changed, one has come, and large ones have another time and owner. */
async function twoVersions(blocks: MemoryBlocks): Promise<[PublishedImage, PublishedImage]> {
  const before = files(1)
  const after = before.map((file, index) =>
    index === 7 || index === 8
      ? { ...file, content: randomContent(seeded(index), 30_000) }
      : file.content.length > 100_000
        ? { ...file, mtime: 1_700_000_000, uid: 5 }
        : file,
  )
  after.push({ name: 'lib/new', mtime: 1, content: randomContent(seeded(3), 50_000) })
  return [await pushTars(blocks, [makeTar(...before)]), await pushTars(blocks, [makeTar(...after)])]
}

test(
  'of the next version of an image only what has changed is fetched, and the layer is what its diff ID says',
  async () => {
    const blocks = new MemoryBlocks()
    const [before, after] = await twoVersions(blocks)
    const node = await openNode(blocks)
    const first = await fetchWhole(node, blocks, before)
    expect(node.reusedBytes).toBe(0)
    const second = await fetchWhole(node, blocks, after)
    expect(second).toBeLessThan(first * 0.12)
    expect(node.reusedBytes).toBeGreaterThan(28 * 300_000)
    expect(node.snapshotter.layers().map(({ verified }) => verified)).toEqual([true, true])
  },
  deadlineMs,
)

test(
  'a page fault is answered with the bytes of another layer',
  async () => {
    const blocks = new MemoryBlocks()
    const [before, after] = await twoVersions(blocks)
    const node = await openNode(blocks)
    await fetchWhole(node, blocks, before)
    await node.pull(after)
    await using mounted = await node.mount(after)
    blocks.asked.length = 0
    const read = await readFile(join(mounted.path, 'lib/11'))
    expect(read.equals(files(1)[11]?.content ?? Buffer.of())).toBe(true)
    // The page before the file's first byte has its header, which has changed.
    const asked = blocks.asked.map((cid) => blocks.blocks.get(cid)?.length ?? 0)
    expect(Math.max(0, ...asked)).toBeLessThan(40_000)
    expect(node.reusedBytes).toBeGreaterThan(250_000)
    blocks.asked.length = 0
    expect(await readFile(join(mounted.path, 'lib/7'))).toHaveLength(30_000)
    expect(blocks.asked.length).toBeGreaterThan(0)
  },
  deadlineMs,
)

test(
  'what was removed is fetched again',
  async () => {
    const blocks = new MemoryBlocks()
    const [before, after] = await twoVersions(blocks)
    const node = await openNode(blocks)
    const first = await fetchWhole(node, blocks, before)
    await node.snapshotter.collectGarbage(0)
    const second = await fetchWhole(node, blocks, after)
    expect(second).toBeGreaterThan(first * 0.8)
    expect(node.reusedBytes).toBe(0)
  },
  deadlineMs,
)

test(
  'what layers share is known after a restart, also if the file that says so was lost or damaged',
  async () => {
    const blocks = new MemoryBlocks()
    const [before, after] = await twoVersions(blocks)
    const node = await openNode(blocks)
    const first = await fetchWhole(node, blocks, before)
    await node.stop()
    writeFileSync(join(node.root, 'shared-leaves.db'), 'damaged '.repeat(1_000))
    await node.start(blocks)
    expect(node.log.sentences.filter((line) => line.includes('made anew'))).toHaveLength(1)
    await node.stop()
    await node.start(blocks)
    expect(await fetchWhole(node, blocks, after)).toBeLessThan(first * 0.12)
    expect(node.log.sentences.filter((line) => line.includes('made anew'))).toHaveLength(1)
  },
  deadlineMs,
)

test(
  'what the disk has damaged in a layer is not copied from it, and spoils no other',
  async () => {
    const blocks = new MemoryBlocks()
    const [before, after] = await twoVersions(blocks)
    const node = await openNode(blocks)
    await fetchWhole(node, blocks, before)
    const [first] = node.snapshotter.layers()
    const damaged = await damageUnits(
      join(node.root, 'layers', String(first?.id)),
      seeded(5),
      10_000,
    )
    expect(damaged.length).toBeGreaterThan(30)
    await fetchWhole(node, blocks, after)
    expect(node.reusedBytes).toBe(0)
    expect(node.verificationFailures).toEqual([])
    expect(node.snapshotter.layers().map(({ verified }) => verified)).toEqual([true, true])
  },
  deadlineMs,
)

test(
  'leaves that are the same in a plain tar are shared too',
  async () => {
    const blocks = new MemoryBlocks()
    const tar = makeTar(...files(1))
    const longer = Buffer.concat([tar.subarray(0, -1024), makeTar({ name: 'more', content: 'x' })])
    const node = await openNode(blocks)
    const first = await fetchWhole(node, blocks, await publishImage(blocks, [plainLayer(tar)]))
    const image = await publishImage(blocks, [plainLayer(longer)])
    expect(await fetchWhole(node, blocks, image)).toBeLessThan(first * 0.2)
  },
  deadlineMs,
)

/** Layers of random units in a store, whose leaves are called as a test says. */
async function openShared(): Promise<{
  add: (
    layer: number,
    facts: { seed?: number; coding?: UnitCoding; leaves?: readonly (CID | undefined)[] },
  ) => Promise<{
    read: (unit: number) => Promise<Buffer>
    leaves: (CID | undefined)[]
    fetched: number[]
  }>
  reused: () => number
}> {
  const scratch = Scratch.open('shared')
  const log = listeningLog()
  const opened = new AsyncDisposableStack()
  opened.use(scratch)
  const queue = new FetchQueue<Fetched>(DEFAULT_FETCH_LIMITS)
  const store = opened.use(
    await BlobStore.open({ root: join(scratch.dir, 'layers'), bytesMax: 2 ** 30 }, { queue, log }),
  )
  let reused = 0
  const shared = opened.use(
    new SharedLeaves(join(scratch.dir, 'shared.db'), { store, log, onReuse: () => reused++ }),
  )
  onTestFinished(() => opened.disposeAsync())
  return {
    reused: () => reused,
    add: async (layer, { seed = 1, coding = 'plain', leaves: named }) => {
      const { map, source, bytes } = randomLayer(seed, 5, 5_000)
      const leaves: (CID | undefined)[] = [
        ...(named ?? [0, 1, 2, 3, 4].map((unit) => cidOf(unitBytes({ map, bytes }, unit)))),
      ]
      const units: LeafUnits = {
        map: { ...map, coding },
        fetchUnit: (unit, request) => source.fetchUnit(unit, request),
        leafOf: (unit) => Promise.resolve(leaves[unit]),
      }
      const held = await store.add({
        inode: fuseInode(layer),
        name: String(layer),
        map: units.map,
        source: shared.share(layer, units),
      })
      const read = (unit: number): Promise<Buffer> => {
        const [start = 0, end = 0] = [map.starts[unit], map.starts[unit + 1]]
        return held.read({ start, end }, { priority: 'foreground', signal })
      }
      return { read, leaves, fetched: source.fetched }
    },
  }
}

test('a layer does not ask the network for a unit that another has, and asks for one that none has', async () => {
  const { add, reused } = await openShared()
  const one = await add(1, {})
  await one.read(2)
  const two = await add(2, {})
  expect((await two.read(2)).equals(await one.read(2))).toBe(true)
  expect([two.fetched, reused()]).toEqual([[], 1])
  await two.read(3)
  expect([two.fetched, reused()]).toEqual([[3], 1])
})

test('the same block under another coding makes other bytes: it is not shared', async () => {
  const { add, reused } = await openShared()
  const plain = await add(1, { coding: 'plain' })
  await plain.read(2)
  const zstd = await add(2, { coding: 'zstd', leaves: plain.leaves })
  await zstd.read(2)
  expect([zstd.fetched, reused()]).toEqual([[2], 0])
})

test('a unit of another length is not shared, whatever its leaf is called', async () => {
  const { add, reused } = await openShared()
  const one = await add(1, { seed: 1 })
  await one.read(2)
  const other = await add(2, { seed: 2, leaves: one.leaves })
  const [, , leaf] = one.leaves
  expect(leaf).toBeInstanceOf(CID)
  await other.read(2)
  expect([other.fetched, reused()]).toEqual([[2], 0])
})

test('a unit whose leaf has become another is not shared', async () => {
  const { add, reused } = await openShared()
  const one = await add(1, {})
  await one.read(2)
  const two = await add(2, {})
  one.leaves[2] = cidOf(Buffer.from('made anew'))
  await two.read(2)
  expect([two.fetched, reused()]).toEqual([[2], 0])
})
