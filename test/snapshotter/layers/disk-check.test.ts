import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { unitRange } from '../../../snapshotter/blobs/shared-units.ts'
import type { LayerToc } from '../../../snapshotter/toc/layer-toc.ts'
import { ZstdLayerMap } from '../../../snapshotter/toc/zstd-layer-map.ts'
import { damageUnits, unitsOnDisk } from '../../support/damage-units.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import {
  indexedLayer,
  lyingLayer,
  type PublishedImage,
  plainLayer,
  publishImage,
  type TestLayer,
  zstdLayer,
} from './published-image.ts'

// What a disk damages after it was written right. A test damages it by writing to the file, which is the same to who reads it.

const deadlineMs = 60_000
const { signal } = new AbortController()
const content = randomContent(seeded(1), 3_000_000)
const SHA256 = createHash('sha256').update(content).digest('hex')

type Stage = {
  readonly node: LazyNode
  readonly blocks: MemoryBlocks
  readonly image: PublishedImage
  /** Of the image's layer. */
  readonly digest: string
  readonly dir: string
}

/** A node that has pulled an image of one layer, which was mounted, and is complete if `isWhole`. */
async function setUp(
  isWhole: boolean,
  options: Parameters<typeof LazyNode.open>[1] = {},
  published?: TestLayer,
): Promise<Stage> {
  const blocks = new MemoryBlocks()
  const only = published ?? (await indexedLayer(makeTar({ name: 'file', content })))
  const image = await publishImage(blocks, [only])
  const node = await LazyNode.open(blocks, options)
  onTestFinished(() => node[Symbol.asyncDispose]())
  await node.pull(image)
  if (isWhole) {
    await node.snapshotter.pull(image.root.toString(), { all: true, signal, onProgress: () => {} })
  }
  await node.view(image)
  const [layer] = node.snapshotter.layers()
  const dir = join(node.root, 'layers', String(layer?.id))
  return { node, blocks, image, digest: layer?.blobDigest ?? '', dir }
}

async function restart({ node, blocks }: Stage): Promise<void> {
  await node.stop()
  await node.start(blocks)
}

async function sumOfFile({ node, image }: Stage): Promise<string> {
  await using mounted = await node.mount(image)
  return createHash('sha256')
    .update(await readFile(join(mounted.path, 'file')))
    .digest('hex')
}

/** Turns the bits of 16 bytes in the middle of a file. */
function damage(path: string): void {
  const bytes = readFileSync(path)
  const middle = Math.floor(bytes.length / 2)
  for (let at = middle; at < middle + 16; at++) bytes[at] = (bytes[at] ?? 0) ^ 0xff
  writeFileSync(path, bytes)
}

/** What is read next comes to the agent, and not from what the kernel remembers. */
function dropPageCache(): void {
  writeFileSync('/proc/sys/vm/drop_caches', '1')
}

/** CIDs of leaves of layers that were asked for; other blocks of a test's image are small. */
function leavesAsked({ asked, blocks }: MemoryBlocks): string[] {
  return [...new Set(asked)].filter((cid) => (blocks.get(cid)?.length ?? 0) > 100_000)
}

/** A zstd map as well-formed as the given one, where the first unit ends a byte earlier. */
function otherMap(bytes: Uint8Array): Uint8Array {
  const map = ZstdLayerMap.fromBytes(bytes)
  const units = Array.from({ length: map.starts.length - 1 }, (_, unit) => {
    const [blob, layer] = [map.blobRange(unit), unitRange(map, unit)]
    const moved = unit === 0 ? -1 : unit === 1 ? 1 : 0
    return { blobBytes: blob.end - blob.start, layerBytes: layer.end - layer.start + moved }
  })
  return new ZstdLayerMap(units, map.blobSize).toBytes()
}

/** Offline, so that only what is on the disk can help. */
const noBlocks = new MemoryBlocks()

test(
  'a metadata image that the disk has damaged is made again from the table of contents before a container starts on it, without a network',
  async () => {
    const stage = await setUp(true)
    const image = join(stage.dir, 'meta.erofs')
    const whole = readFileSync(image)
    await stage.node.stop()
    damage(image)
    await stage.node.start(noBlocks)
    expect(await sumOfFile(stage)).toBe(SHA256)
    expect(readFileSync(image).length).toBe(whole.length)
    expect(stage.node.log.sentences.join()).toContain('had damaged the names and modes of layer')
  },
  deadlineMs,
)

test(
  'a table of contents that the disk has damaged is made again from a layer that is here whole, without a network',
  async () => {
    const stage = await setUp(true)
    const toc = join(stage.dir, 'toc')
    const whole = readFileSync(toc)
    await stage.node.stop()
    damage(toc)
    await stage.node.start(noBlocks)
    expect(await sumOfFile(stage)).toBe(SHA256)
    expect(readFileSync(toc).equals(whole)).toBe(true)
  },
  deadlineMs,
)

test(
  'a layer that is not here whole is built again where the disk has damaged its table of contents',
  async () => {
    const stage = await setUp(false)
    await stage.node.stop()
    damage(join(stage.dir, 'toc'))
    await stage.node.start(stage.blocks)
    expect(await sumOfFile(stage)).toBe(SHA256)
    expect(stage.node.log.sentences.join()).toContain('it is built again')
    expect(await stage.node.snapshotter.checkLayer(stage.digest, signal)).toMatchObject({
      healedTables: false,
    })
  },
  deadlineMs,
)

test.each(['meta.erofs', 'toc', 'sums'])(
  'a layer whose %s is gone is mounted all the same',
  async (name) => {
    const stage = await setUp(true)
    await stage.node.stop()
    rmSync(join(stage.dir, name))
    await stage.node.start(noBlocks)
    expect(await sumOfFile(stage)).toBe(SHA256)
    expect(existsSync(join(stage.dir, name))).toBe(true)
  },
  deadlineMs,
)

test(
  'a map that the disk has damaged is not used, also where it is one: the layer is built again',
  async () => {
    const stage = await setUp(false)
    await stage.node.stop()
    const path = join(stage.dir, 'map')
    const whole = readFileSync(path)
    writeFileSync(path, otherMap(whole))
    await stage.node.start(stage.blocks)
    expect(await sumOfFile(stage)).toBe(SHA256)
    expect(stage.node.log.sentences.join()).toContain('is damaged on this node')
    expect(readFileSync(path).equals(whole)).toBe(true)
  },
  deadlineMs,
)

test(
  'an image of merged layers that the disk has damaged is merged again',
  async () => {
    const stage = await setUp(true, { mergeLayersMin: 1 })
    const derived = join(stage.node.root, 'derived')
    const [name = ''] = readdirSync(derived).filter((each) => each.endsWith('.erofs'))
    const whole = readFileSync(join(derived, name))
    await stage.node.stop()
    damage(join(derived, name))
    await stage.node.start(noBlocks)
    expect(await sumOfFile(stage)).toBe(SHA256)
    expect(readFileSync(join(derived, name)).equals(whole)).toBe(true)
  },
  deadlineMs,
)

test(
  'sound tables are read once in the life of an agent, and nothing is written',
  async () => {
    const stage = await setUp(true)
    await restart(stage)
    expect(await sumOfFile(stage)).toBe(SHA256)
    expect(stage.node.log.sentences.join()).not.toContain('damaged')
    // Nobody looks again: it is what `ipdr cache check` is for.
    damage(join(stage.dir, 'toc'))
    expect(await sumOfFile(stage)).toBe(SHA256)
  },
  deadlineMs,
)

test(
  'a check of the disk finds the parts of a layer that it has damaged, and fetches those again',
  async () => {
    const stage = await setUp(true)
    const { node, digest } = stage
    expect(await node.snapshotter.checkLayer(digest, signal)).toEqual({
      isWhole: true,
      healedUnits: 0,
      healedTables: false,
    })
    damage(join(stage.dir, 'data'))
    expect(await sumOfFile(stage)).not.toBe(SHA256)
    expect(await node.snapshotter.checkLayer(digest, signal)).toEqual({
      isWhole: true,
      healedUnits: 1,
      healedTables: false,
    })
    expect(await sumOfFile(stage)).toBe(SHA256)
    expect(node.log.sentences.join()).toContain('had damaged 1 parts of layer')
  },
  deadlineMs,
)

test(
  'a check of the disk heals tables too, whatever the agent has looked at before',
  async () => {
    const stage = await setUp(true)
    damage(join(stage.dir, 'meta.erofs'))
    expect(await stage.node.snapshotter.checkLayer(stage.digest, signal)).toMatchObject({
      healedTables: true,
    })
    expect(await sumOfFile(stage)).toBe(SHA256)
  },
  deadlineMs,
)

test(
  'what cannot be fetched again is told and no longer served, and is right once there is a network',
  async () => {
    const stage = await setUp(true, { foregroundDeadlineMs: 1_000 })
    const { node, digest } = stage
    await node.stop()
    damage(join(stage.dir, 'data'))
    await node.start(noBlocks)
    await expect(node.snapshotter.checkLayer(digest, signal)).rejects.toThrow(
      /is damaged on this disk, and its bytes cannot be fetched again: .*no block/,
    )
    await expect(sumOfFile(stage)).rejects.toThrow('EIO')
    await restart(stage)
    expect(await sumOfFile(stage)).toBe(SHA256)
    expect(await node.snapshotter.checkLayer(digest, signal)).toEqual({
      isWhole: true,
      healedUnits: 0,
      healedTables: false,
    })
  },
  deadlineMs,
)

describe('of a layer of which bytes are still missing', () => {
  const SEEDS = [1, 2, 3]

  /** As `setUp`, with some parts of the file read through a mount that stays; which, the seed decides. */
  async function readSome(seed: number, layer?: TestLayer): Promise<Stage & { path: string }> {
    const stage = await setUp(false, {}, layer)
    const mounted = await stage.node.mount(stage.image)
    onTestFinished(() => mounted[Symbol.asyncDispose]())
    const path = join(mounted.path, 'file')
    const random = seeded(seed)
    await using file = await open(path)
    for (let read = 0; read < 8; read++) {
      const at = random(content.length - 100)
      const { buffer } = await file.read(Buffer.alloc(100), 0, 100, at)
      expect(buffer.equals(content.subarray(at, at + 100))).toBe(true)
    }
    return { ...stage, path }
  }

  /** All of the file, as the container reads it that had it mounted all the time. */
  async function sumThroughMount(path: string): Promise<string> {
    return createHash('sha256')
      .update(await readFile(path))
      .digest('hex')
  }

  const pullAll = ({ node, image }: Stage): Promise<unknown> =>
    node.snapshotter.pull(image.root.toString(), { all: true, signal, onProgress: () => {} })

  /** The state that a check leaves behind: whatever is damaged from now on, nobody looks for by himself. */
  async function checkedAfterRestart(stage: Stage): Promise<void> {
    await restart(stage)
    expect(await stage.node.snapshotter.checkLayer(stage.digest, signal)).toEqual({
      isWhole: false,
      healedUnits: 0,
      healedTables: false,
    })
  }

  test.each(SEEDS)(
    'no byte that the disk damaged before a restart of the agent is served to a container that goes on (seed %d)',
    async (seed) => {
      const stage = await readSome(seed)
      await stage.node.stop()
      const damaged = await damageUnits(stage.dir, seeded(seed), 5)
      expect(damaged.length).toBeGreaterThan(1)
      dropPageCache()
      await stage.node.start(stage.blocks)
      expect(await sumThroughMount(stage.path)).toBe(SHA256)
      expect(stage.node.log.sentences.join()).toContain('the disk has damaged bytes in')
      await pullAll(stage)
      expect(stage.node.snapshotter.layers()).toMatchObject([{ verified: true }])
      expect(stage.node.verificationFailures).toEqual([])
    },
    deadlineMs,
  )

  test.each(SEEDS)(
    'a check of the disk finds each part that is damaged, and fetches it again (seed %d)',
    async (seed) => {
      const stage = await readSome(seed)
      const { node, dir, digest } = stage
      await checkedAfterRestart(stage)
      const { present } = await unitsOnDisk(dir)
      const damaged = await damageUnits(dir, seeded(seed), 4)
      expect(await node.snapshotter.checkLayer(digest, signal)).toEqual({
        isWhole: false,
        healedUnits: damaged.length,
        healedTables: false,
      })
      expect(node.log.sentences.join()).toContain(`had damaged ${damaged.length} parts of layer`)
      dropPageCache()
      expect(await sumThroughMount(stage.path)).toBe(SHA256)
      await node.stop()
      expect((await unitsOnDisk(dir)).present).toEqual(expect.arrayContaining(present))
      expect(node.verificationFailures).toEqual([])
    },
    deadlineMs,
  )

  test.each(SEEDS)(
    'the disk and not the publisher is to blame for parts that are damaged when the last one arrives, and they are fetched again (seed %d)',
    async (seed) => {
      const stage = await readSome(seed)
      await checkedAfterRestart(stage)
      await damageUnits(stage.dir, seeded(seed), 4)
      await pullAll(stage)
      expect(stage.node.verificationFailures).toEqual([])
      expect(stage.node.snapshotter.layers()).toMatchObject([{ verified: true }])
      expect(await sumOfFile(stage)).toBe(SHA256)
      expect(await stage.node.snapshotter.checkLayer(stage.digest, signal)).toMatchObject({
        isWhole: true,
        healedUnits: 0,
      })
    },
    deadlineMs,
  )

  test(
    'nor is the publisher for a table of contents that is damaged when the last one arrives',
    async () => {
      const stage = await readSome(1)
      damage(join(stage.dir, 'toc'))
      await pullAll(stage)
      expect(stage.node.verificationFailures).toEqual([])
      expect(stage.node.snapshotter.layers()).toMatchObject([{ verified: true }])
      expect(stage.node.log.sentences.join()).toContain('had damaged the names and modes of layer')
    },
    deadlineMs,
  )

  test(
    'while what is damaged cannot be fetched, nobody is blamed, and the layer is checked once it can',
    async () => {
      const stage = await readSome(1, plainLayer(makeTar({ name: 'file', content })))
      const { node, dir, blocks } = stage
      await checkedAfterRestart(stage)
      await damageUnits(dir, seeded(1), 1)
      // All that is missing comes; of what was here, nothing comes again.
      const leaves = leavesAsked(blocks).map((cid) => [cid, blocks.blocks.get(cid)] as const)
      for (const [cid] of leaves) blocks.blocks.delete(cid)
      await pullAll(stage)
      expect(node.verificationFailures).toEqual([])
      expect(node.log.sentences.join()).toContain('cannot be fetched again: no block')
      expect(node.snapshotter.layers()).toMatchObject([{ verified: false, isComplete: false }])
      for (const [cid, block] of leaves) blocks.blocks.set(cid, block ?? Buffer.of())
      blocks.asked.length = 0
      await pullAll(stage)
      expect(leavesAsked(blocks)).toHaveLength(1)
      expect(node.snapshotter.layers()).toMatchObject([{ verified: true }])
      expect(await sumOfFile(stage)).toBe(SHA256)
    },
    deadlineMs,
  )

  test(
    'a publisher who lies is blamed, also where the disk has damaged some of it',
    async () => {
      const tar = makeTar({ name: 'file', content })
      const lie = (toc: LayerToc): LayerToc => ({
        ...toc,
        entries: toc.entries.map((entry) => ({ ...entry, mode: 0o6755 })),
      })
      const stage = await readSome(1, await lyingLayer(tar, lie))
      await checkedAfterRestart(stage)
      await damageUnits(stage.dir, seeded(1), 4)
      await expect(pullAll(stage)).rejects.toThrow(/not what its image promises/)
      expect(stage.node.verificationFailures).toEqual(['toc'])
      dropPageCache()
      await expect(sumThroughMount(stage.path)).rejects.toThrow(/EIO|ESTALE/)
    },
    deadlineMs,
  )
})

test.each([
  ['before the agent starts', true],
  ['while it runs', false],
] as const)(
  'a zstd layer without an index, which is never fetched in parts, is read anew where the disk damaged it %s',
  async (_, isStopped) => {
    const tar = makeTar({ name: 'file', content })
    const stage = await setUp(true, {}, zstdLayer(tar))
    const { node, digest } = stage
    if (isStopped) await node.stop()
    damage(join(stage.dir, 'data'))
    if (isStopped) await node.start(stage.blocks)
    stage.blocks.asked.length = 0
    await expect(node.snapshotter.checkLayer(digest, signal)).rejects.toThrow(
      /is damaged on this disk, and its bytes cannot be fetched again: .*pull it again/,
    )
    expect(leavesAsked(stage.blocks)).toEqual([])
    await restart(stage)
    expect(await sumOfFile(stage)).toBe(SHA256)
  },
  deadlineMs,
)

test(
  'a check counts a layer of which bytes are missing as such, and knows no other',
  async () => {
    const { node, digest } = await setUp(false)
    expect(await node.snapshotter.checkLayer(digest, signal)).toMatchObject({ isWhole: false })
    await expect(node.snapshotter.checkLayer('sha256:none', signal)).rejects.toThrow(
      'ipdr cache ls',
    )
  },
  deadlineMs,
)
