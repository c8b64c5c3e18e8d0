import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { CID } from 'multiformats/cid'
import { create } from 'multiformats/hashes/digest'
import { expect, onTestFinished, test, vi } from 'vitest'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import type { ListedRange, PrefetchList } from '../../../snapshotter/prefetch/prefetch-list.ts'
import {
  addPublishedLists,
  findPublishedStart,
} from '../../../snapshotter/prefetch/published-list.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar, type TarPart } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import { indexedLayer, type PublishedImage, publishImage } from './published-image.ts'
import { pushTars } from './pushed-image.ts'

const { signal } = new AbortController()
const RAW = 0x55
const run = promisify(execFile)

/** Files of 300 KB that do not compress: each has blocks of its own. */
function filesTar(
  seed: number,
  names: readonly string[],
  sizes: Record<string, number> = {},
): Buffer {
  const random = seeded(seed)
  const parts: TarPart[] = [{ name: './', typeflag: '5', mode: 0o755 }]
  for (const name of names) {
    parts.push({ name, content: randomContent(random, sizes[name] ?? 300_000) })
  }
  return makeTar(...parts)
}

const BASE = filesTar(1, ['libc', 'shell', 'unused'])
const APP = filesTar(2, ['main', 'data', 'manual'])

async function openNode(blocks: MemoryBlocks): Promise<LazyNode> {
  const node = await LazyNode.open(blocks)
  onTestFinished(() => node[Symbol.asyncDispose]())
  return node
}

/** A start: a container's mount, and a process that reads these files one after the other. */
async function start(
  node: LazyNode,
  image: PublishedImage,
  names: readonly string[],
): Promise<void> {
  await using mounted = await node.mount(image)
  await run(
    'cat',
    names.map((name) => join(mounted.path, name)),
    {
      encoding: 'buffer',
      maxBuffer: 2 ** 30,
    },
  )
}

/** Takes the image from containerd. */
async function removeImage(node: LazyNode, { chainIds }: PublishedImage): Promise<void> {
  const { snapshots } = node.snapshotter
  const views = Array.from(snapshots.list(['kind==view'])).flat()
  for (const { name } of views) snapshots.remove(name)
  for (const chainId of chainIds.toReversed()) snapshots.remove(chainId)
  await snapshots.cleanup()
}

/** A new process of the agent; nothing of the image is left but what was learned of it. */
async function restartWithout(
  node: LazyNode,
  image: PublishedImage,
  blocks: MemoryBlocks,
): Promise<void> {
  await node.stop()
  await node.start(blocks)
  await removeImage(node, image)
  for (const { blobDigest } of node.snapshotter.layers()) {
    await node.snapshotter.removeLayer(blobDigest)
  }
}

async function prefetched(node: LazyNode): Promise<void> {
  await vi.waitFor(
    () => expect(node.log.sentences.join('\n')).toMatch(/prefetched \d+ bytes/),
    20_000,
  )
}

/** Files of which a read had to wait. */
async function waitedFor(node: LazyNode): Promise<string[]> {
  const paths = (await node.snapshotter.waitedFor()).flatMap(({ path }) => path ?? [])
  return [...new Set(paths)].toSorted()
}

const range = (of: Partial<ListedRange>): ListedRange => ({
  layer: 0,
  path: 'libc',
  fileSize: 300_000,
  fileOffset: 0,
  layerOffset: 1024,
  length: 300_000,
  ...of,
})

/** The one raw block of a file with this digest. */
function cidOfDigest(digest: string): CID {
  return CID.createV1(RAW, create(0x12, Buffer.from(digest.slice('sha256:'.length), 'hex')))
}

/** The image again, with a list beside it. */
async function withList(
  blocks: MemoryBlocks,
  image: PublishedImage,
  list: PrefetchList,
): Promise<PublishedImage> {
  const sink = {
    put: async (cid: CID, block: Uint8Array) => void blocks.blocks.set(cid.toString(), block),
  }
  const lists = new Map([[image.manifestDigest, list]])
  const root = await addPublishedLists(image.root, lists, { blocks, sink, signal })
  return { ...image, root }
}

test('what a start reads is fetched before the next one reads it, though all of the image had gone from the node', async () => {
  const blocks = new MemoryBlocks()
  const image = await publishImage(blocks, [await indexedLayer(BASE), await indexedLayer(APP)])
  const node = await openNode(blocks)
  await node.pull(image)
  const read = ['libc', 'main', 'shell']
  await start(node, image, read)
  expect(await waitedFor(node)).toEqual(['/libc', '/main', '/shell'])
  await restartWithout(node, image, blocks)

  await node.pull(image)
  await prefetched(node)
  const { fetchedBytes, usedBytes } = node.snapshotter.prefetched()
  expect(usedBytes).toBe(0)
  expect(fetchedBytes).toBeGreaterThanOrEqual(900_000)
  expect(fetchedBytes).toBeLessThan(1_200_000)
  await start(node, image, read)
  expect(await node.snapshotter.waitedFor()).toEqual([])
  expect(node.snapshotter.prefetched().usedBytes).toBeGreaterThanOrEqual(900_000)
  await start(node, image, ['manual'])
  expect(await waitedFor(node)).toEqual(['/manual'])
})

test('bytes that were here already are learned as well, as long as the page cache has none of them', async () => {
  const blocks = new MemoryBlocks()
  // Less than half of it is read, or all of it would come, and be mounted from its plain file.
  const large = filesTar(1, ['libc', 'shell', 'unused'], { unused: 3_000_000 })
  const image = await publishImage(blocks, [await indexedLayer(large)])
  const node = await openNode(blocks)
  await node.pull(image)
  await start(node, image, ['libc', 'shell'])
  await node.stop()
  await node.start(blocks)
  await removeImage(node, image)
  await node.pull(image)
  await start(node, image, ['shell', 'libc'])
  expect(await node.snapshotter.waitedFor()).toEqual([])
  await node.stop()
  const learned = node.log.sentences.filter((sentence) => sentence.startsWith('learned'))
  expect(learned).toHaveLength(2)
  expect(learned[0]).toMatch(/600,?\d+ bytes/)
})

test('a start that fails early does not make the list of the one before it worse', async () => {
  const blocks = new MemoryBlocks()
  const image = await publishImage(blocks, [await indexedLayer(BASE), await indexedLayer(APP)])
  const node = await openNode(blocks)
  for (const read of [['libc', 'main', 'shell'], ['libc']]) {
    await node.pull(image)
    await start(node, image, read)
    await restartWithout(node, image, blocks)
  }
  await node.pull(image)
  await vi.waitFor(
    () => expect(node.snapshotter.prefetched().fetchedBytes).toBeGreaterThanOrEqual(900_000),
    20_000,
  )
})

test('a recording sees reads of layers that are complete, mounted, and in the page cache', async () => {
  const blocks = new MemoryBlocks()
  const image = await publishImage(blocks, [await indexedLayer(BASE), await indexedLayer(APP)])
  const node = await openNode(blocks)
  await node.pull(image)
  const reference = image.root.toString()
  await node.snapshotter.pull(reference, { all: true, signal, onProgress: () => {} })
  await start(node, image, ['libc', 'main'])
  expect(node.snapshotter.reads().servedBytes).toBe(0)
  const pathsOf = async (names: readonly string[]): Promise<string[]> => {
    using recording = await node.snapshotter.record(reference)
    await start(node, image, names)
    const { list, files, bytes, imageBytes } = await recording.finish()
    expect({ files, bytes }).toEqual({ files: names.length, bytes: names.length * 300_000 })
    expect(imageBytes).toBe(BASE.length + APP.length)
    return list.ranges.map(({ path }) => path)
  }
  expect(new Set(await pathsOf(['main', 'libc']))).toEqual(new Set(['main', 'libc']))
  expect((await pathsOf(['shell', 'main', 'libc'])).at(0)).toBe('shell')
})

test('only an image that is here can be recorded', async () => {
  const blocks = new MemoryBlocks()
  const image = await publishImage(blocks, [await indexedLayer(BASE)])
  const node = await openNode(blocks)
  const failure = await failureOf(() => node.snapshotter.record(image.root.toString()))
  expect(failure).toMatchObject({ name: 'ImageError', code: 'NOT_FOUND' })
  expect(failure.message).toContain('pull it first')
})

test('a list that was published with the image is replayed on a node that has never run it', async () => {
  const blocks = new MemoryBlocks()
  const app = await publishImage(blocks, [await indexedLayer(BASE), await indexedLayer(APP)])
  const image = await withList(blocks, app, {
    layers: [
      { diffId: digestOf(BASE), layerSize: BASE.length },
      { diffId: digestOf(APP), layerSize: APP.length },
    ],
    ranges: [range({ layer: 1, path: 'main' }), range({ layer: 0 })],
  })
  expect(image.root.equals(app.root)).toBe(false)
  const node = await openNode(blocks)
  await node.pull(image)
  await prefetched(node)
  await start(node, image, ['libc', 'main', 'data'])
  expect(await waitedFor(node)).toEqual(['/data'])
})

test('what a start reads of one layer is fetched while another cannot be mounted yet', async () => {
  const base = await indexedLayer(BASE)
  const baseAlone = new MemoryBlocks()
  await publishImage(baseAlone, [base])
  const blocks = new MemoryBlocks()
  const app = await publishImage(blocks, [base, await indexedLayer(APP)])
  const known = new Set(blocks.blocks.keys())
  const image = await withList(blocks, app, {
    layers: [
      { diffId: digestOf(BASE), layerSize: BASE.length },
      { diffId: digestOf(APP), layerSize: APP.length },
    ],
    ranges: [range({ layer: 1, path: 'main' }), range({ layer: 0 })],
  })
  // Nothing of the upper layer's blob comes, not even its table of contents.
  const gate = Promise.withResolvers<void>()
  const get = blocks.get.bind(blocks)
  vi.spyOn(blocks, 'get').mockImplementation(async (cid, request) => {
    const key = cid.toString()
    const isOfUpper = known.has(key) && !baseAlone.blocks.has(key)
    const isLeaf = (blocks.blocks.get(key)?.length ?? 0) > 30_000
    if (isOfUpper && isLeaf) await gate.promise
    return get(cid, request)
  })
  const node = await openNode(blocks)
  await node.serve(image)
  let isPulled = false
  const pulling = node.pull(image).finally(() => (isPulled = true))
  try {
    await vi.waitFor(
      () => expect(node.snapshotter.prefetched().fetchedBytes).toBeGreaterThanOrEqual(300_000),
      20_000,
    )
    expect(isPulled).toBe(false)
  } finally {
    gate.resolve()
    await pulling
  }
  await prefetched(node)
  await start(node, image, ['libc', 'main', 'data'])
  expect(await waitedFor(node)).toEqual(['/data'])
})

test('what a start reads is on its way before even the config has come, and is asked for once', async () => {
  const blocks = new MemoryBlocks()
  const app = await pushTars(blocks, [BASE, APP])
  const image = await withList(blocks, app, {
    layers: [
      { diffId: digestOf(BASE), layerSize: BASE.length },
      { diffId: digestOf(APP), layerSize: APP.length },
    ],
    ranges: [range({ layer: 1, path: 'main' }), range({ layer: 0 })],
  })
  const { config } = JSON.parse(image.manifest.toString()) as { config: { digest: string } }
  const configCid = cidOfDigest(config.digest)
  const gate = Promise.withResolvers<void>()
  const get = blocks.get.bind(blocks)
  let bytes = 0
  vi.spyOn(blocks, 'get').mockImplementation(async (cid, request) => {
    if (cid.equals(configCid)) await gate.promise
    const block = await get(cid, request)
    bytes += block.length
    return block
  })
  const node = await openNode(blocks)
  const pulling = node.pull(image)
  try {
    await vi.waitFor(() => expect(bytes).toBeGreaterThan(250_000), 20_000)
  } finally {
    gate.resolve()
    await pulling
  }
  await prefetched(node)
  await start(node, image, ['libc', 'main'])
  expect(await waitedFor(node)).toEqual([])
  const large = new Set(
    [...blocks.blocks].flatMap(([cid, block]) => (block.length > 100_000 ? [cid] : [])),
  )
  const asked = blocks.asked.filter((cid) => large.has(cid))
  expect(asked.length).toBeGreaterThanOrEqual(2)
  expect(new Set(asked).size).toBe(asked.length)
})

test('of an image that was built anew, what the one before has brought is not asked for again', async () => {
  const blocks = new MemoryBlocks()
  const before = await pushTars(blocks, [BASE, APP])
  const rebuilt = filesTar(2, ['main', 'data', 'manual', 'added'])
  const mainOffset = rebuilt.indexOf(APP.subarray(1024, 5120))
  expect(mainOffset).toBe(1024)
  const listed = {
    layers: [
      { diffId: digestOf(BASE), layerSize: BASE.length },
      { diffId: digestOf(rebuilt), layerSize: rebuilt.length },
    ],
    ranges: [range({ layer: 1, path: 'main' }), range({ layer: 0 })],
  }
  const after = await withList(blocks, await pushTars(blocks, [BASE, rebuilt]), listed)
  const node = await openNode(blocks)
  await node.pull(before)
  await start(node, before, ['libc', 'main'])
  const askedBefore = blocks.asked.length
  await node.pull(after)
  await vi.waitFor(() => expect(node.snapshotter.prefetched().fetchedBytes).toBeGreaterThan(0))
  await start(node, after, ['libc', 'main'])
  expect(await waitedFor(node)).toEqual(['/libc', '/main'])
  const again = blocks.asked
    .slice(askedBefore)
    .filter((cid) => (blocks.blocks.get(cid)?.length ?? 0) > 100_000)
  expect(again).toEqual([])
  expect(node.reusedBytes).toBeGreaterThanOrEqual(300_000)
})

test('of an image whose layers are here nothing is fetched ahead', async () => {
  const blocks = new MemoryBlocks()
  const image = await withList(blocks, await pushTars(blocks, [BASE]), {
    layers: [{ diffId: digestOf(BASE), layerSize: BASE.length }],
    ranges: [range({})],
  })
  const request = { priority: 'foreground', signal } as const
  const start = await findPublishedStart(image.root, undefined, blocks, request)
  const node = await openNode(blocks)
  const isAsked = (): boolean => blocks.asked.includes(String(start.blocks))
  blocks.asked.length = 0
  await node.pull(image)
  await prefetched(node)
  expect(isAsked()).toBe(true)
  await node.stop()
  await node.start(blocks)
  blocks.asked.length = 0
  await node.pull(image)
  expect(blocks.asked).toContain(image.root.toString())
  expect(isAsked()).toBe(false)
})

test('the list of the image before it is good for one that was built anew, where files are unchanged', async () => {
  const blocks = new MemoryBlocks()
  const base = await indexedLayer(BASE)
  const before = await publishImage(blocks, [base, await indexedLayer(APP)])
  const rebuilt = filesTar(3, ['added', 'data', 'main', 'manual'], { data: 310_000 })
  const after = await publishImage(blocks, [base, await indexedLayer(rebuilt)])
  const node = await openNode(blocks)
  await node.pull(before)
  await start(node, before, ['libc', 'main', 'data'])
  await restartWithout(node, before, blocks)

  await node.pull(after)
  await prefetched(node)
  await start(node, after, ['libc', 'main', 'data'])
  expect(await waitedFor(node)).toEqual(['/data'])
})

test('a list that names bytes outside of the layer is refused in one sentence, and the image runs', async () => {
  const blocks = new MemoryBlocks()
  const honest = await publishImage(blocks, [await indexedLayer(BASE)])
  const layers = [{ diffId: digestOf(BASE), layerSize: BASE.length }]
  const image = await withList(blocks, honest, {
    layers,
    ranges: [range({ layerOffset: BASE.length - 100 })],
  })
  const node = await openNode(blocks)
  await node.pull(image)
  await vi.waitFor(() => expect(node.log.sentences.join('\n')).toMatch(/prefetch list/), 20_000)
  await start(node, image, ['libc', 'shell'])
  const about = node.log.sentences.filter((sentence) => sentence.includes('prefetch list'))
  expect(about).toHaveLength(1)
  expect(about[0]).toMatch(/"libc" has the range \d+ to \d+ in a layer of \d+ bytes/)
})

test('a list that lies about the size of a layer leads nowhere', async () => {
  const blocks = new MemoryBlocks()
  const honest = await publishImage(blocks, [await indexedLayer(BASE)])
  const image = await withList(blocks, honest, {
    layers: [{ diffId: digestOf(BASE), layerSize: 2 ** 40 }],
    ranges: [
      range({ path: 'gone', layerOffset: 2 ** 39 }),
      range({ path: 'shell', layerOffset: 2 ** 39 }),
    ],
  })
  const node = await openNode(blocks)
  await node.pull(image)
  await prefetched(node)
  await start(node, image, ['libc', 'shell'])
  expect(await waitedFor(node)).toEqual(['/libc'])
})
