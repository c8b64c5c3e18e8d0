import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'
import { LazyNode } from './lazy-node.ts'
import { indexedLayer, type PublishedImage, publishImage } from './published-image.ts'

const deadlineMs = 60_000

type Stage = {
  readonly node: LazyNode
  readonly blocks: MemoryBlocks
  readonly mine: PublishedImage
  readonly other: PublishedImage
}

/** A node that has pulled `mine`, mounted and stopped. */
async function setUp(options: Parameters<typeof LazyNode.open>[1] = {}): Promise<Stage> {
  const blocks = new MemoryBlocks()
  const publish = async (content: string): Promise<PublishedImage> =>
    publishImage(blocks, [await indexedLayer(makeTar({ name: 'file', content }))])
  const [mine, other] = [await publish('mine'), await publish('other')]
  const node = await LazyNode.open(blocks, options)
  onTestFinished(() => node[Symbol.asyncDispose]())
  await node.pull(mine)
  await node.view(mine)
  await node.stop()
  return { node, blocks, mine, other }
}

async function fileOf(node: LazyNode, image: PublishedImage): Promise<string> {
  await using mounted = await node.mount(image)
  return await readFile(join(mounted.path, 'file'), 'utf8')
}

/** Writes over one page of a database, by a seed, as a bad disk does. */
function damage(path: string, seed: number): void {
  const bytes = readFileSync(path)
  const random = seeded(seed)
  const page = 4096 * random(Math.max(1, Math.floor(bytes.length / 4096)))
  for (let index = 0; index < 4096; index++) bytes[page + index] = random(256)
  writeFileSync(path, bytes)
}

test('what the content proxy knew of its blobs is put aside when it is damaged, and nothing else', async () => {
  const { node, blocks, mine } = await setUp()
  writeFileSync(join(node.root, 'content.db'), 'no database')
  await node.start(blocks)
  expect(node.log.sentences.join()).toContain('content proxy')
  expect(readdirSync(join(node.root, 'set-aside/1'))).toEqual(['content.db'])
  expect(await fileOf(node, mine)).toBe('mine')
})

test.each(['snapshots.db', 'catalog.db'])(
  'a node whose %s is no database any more starts, and images can be pulled again',
  async (name) => {
    const { node, blocks, mine } = await setUp()
    writeFileSync(join(node.root, name), 'no database')
    await node.start(blocks)
    expect(node.log.sentences.join()).toContain('set-aside/1')
    await node.pull(mine)
    expect(await fileOf(node, mine)).toBe('mine')
  },
  deadlineMs,
)

test.each([1, 2, 3, 4, 5, 6, 7, 8])(
  'whichever page of its databases a bad disk has written over (seed %i), it starts and shows no wrong byte',
  async (seed) => {
    const { node, blocks, mine, other } = await setUp()
    for (const name of ['snapshots.db', 'catalog.db']) damage(join(node.root, name), seed)
    await node.start(blocks)
    await node.pull(other)
    await node.pull(mine)
    expect(await fileOf(node, other)).toBe('other')
    expect(await fileOf(node, mine)).toBe('mine')
  },
  deadlineMs,
)

test.each([
  ['a mount a layer, over loop devices', {}],
  ['a mount a layer, from files', { mountsFrom: 'files' }],
  ['merged mounts', { mergeLayersMin: 1 }],
  ['merged mounts from files', { mergeLayersMin: 1, mountsFrom: 'files' }],
] as const)(
  'neither snapshots nor mounts are kept without their catalog: the numbers of their layers go to others (%s)',
  async (_, options) => {
    const { node, blocks, mine, other } = await setUp(options)
    for (const suffix of ['', '-wal', '-shm']) {
      rmSync(join(node.root, `catalog.db${suffix}`), { force: true })
    }
    await node.start(blocks)
    await node.pull(other)
    expect(node.has(mine.chainIds[0] ?? '')).toBe(false)
    // Nor are the mounts that were made by those numbers.
    expect(await fileOf(node, other)).toBe('other')
    await node.pull(mine)
    expect(await fileOf(node, mine)).toBe('mine')
    expect(readdirSync(join(node.root, 'set-aside/1'))).toContain('snapshots')
  },
  deadlineMs,
)

test(
  'a damaged record of a merged image keeps nothing from starting, and the image is merged anew',
  async () => {
    const { node, blocks, mine } = await setUp({ mergeLayersMin: 1 })
    const derived = join(node.root, 'derived')
    const records = readdirSync(derived).filter((name) => name.endsWith('.json'))
    expect(records).toHaveLength(1)
    for (const name of records) writeFileSync(join(derived, name), '{')
    await node.start(blocks)
    expect(await fileOf(node, mine)).toBe('mine')
  },
  deadlineMs,
)

test(
  'sound databases stay where they are',
  async () => {
    const { node, blocks, mine } = await setUp()
    await node.start(blocks)
    expect(node.has(mine.chainIds[0] ?? '')).toBe(true)
    expect(existsSync(join(node.root, 'set-aside'))).toBe(false)
  },
  deadlineMs,
)
