import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import { indexedLayer, type PublishedImage, publishImage } from './published-image.ts'

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
): Promise<Stage> {
  const blocks = new MemoryBlocks()
  const image = await publishImage(blocks, [await indexedLayer(makeTar({ name: 'file', content }))])
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
  'damage that cannot be healed without a network is told, and healed with one',
  async () => {
    const stage = await setUp(true)
    await stage.node.stop()
    damage(join(stage.dir, 'data'))
    await stage.node.start(noBlocks)
    await expect(stage.node.snapshotter.checkLayer(stage.digest, signal)).rejects.toThrow(
      /is damaged on this disk, and its bytes cannot be fetched again: .*no block/,
    )
    await restart(stage)
    expect(await stage.node.snapshotter.checkLayer(stage.digest, signal)).toMatchObject({
      healedUnits: 1,
    })
  },
  deadlineMs,
)

test(
  'a layer of which bytes are missing is told as not checked',
  async () => {
    const { node, digest } = await setUp(false)
    expect(await node.snapshotter.checkLayer(digest, signal)).toMatchObject({ isWhole: false })
    await expect(node.snapshotter.checkLayer('sha256:none', signal)).rejects.toThrow(
      'ipdr cache ls',
    )
  },
  deadlineMs,
)
