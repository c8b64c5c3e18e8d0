import { open, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { gzipSync } from 'node:zlib'
import { decode } from '@ipld/dag-pb'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { BlockSource } from '../../../snapshotter/block-source.ts'
import { Catalog } from '../../../snapshotter/layers/catalog.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { GzipLayerMap } from '../../../snapshotter/toc/gzip/gzip-layer-map.ts'
import type { LayerToc } from '../../../snapshotter/toc/layer-toc.ts'
import { decodeSideIndex, encodeSideIndex } from '../../../snapshotter/toc/side-index.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { Scratch } from '../../support/scratch.ts'
import { seeded } from '../../support/seeded.ts'
import { indexedLayerOf, sideIndexOf } from '../../support/side-index-of.ts'
import { LazyNode } from './lazy-node.ts'
import { type PublishedImage, publishImage, type TestLayer } from './published-image.ts'

const deadlineMs = 60_000

/** 24 MB of files that compress to half: six spans. */
const tar = makeTar(
  { name: './', typeflag: '5', mode: 0o755 },
  ...Array.from({ length: 12 }, (_, index) => ({
    name: `file-${index}`,
    content: randomContent(seeded(index), 2_000_000),
  })),
)
const blob = gzipSync(tar, { level: 1 })
const sideIndex = await sideIndexOf(blob, tar)
const layer: TestLayer = { blob, diffId: digestOf(tar) }

async function openNode(blocks: BlockSource): Promise<LazyNode> {
  const node = await LazyNode.open(blocks)
  onTestFinished(() => node[Symbol.asyncDispose]())
  return node
}

async function fetchWhole(node: LazyNode, image: PublishedImage): Promise<void> {
  const { signal } = new AbortController()
  await node.snapshotter.pull(image.root.toString(), { all: true, signal, onProgress: () => {} })
}

/** The index with an entry's name changed, and otherwise sound: what only its publisher can be blamed for. */
function lyingIndex(): Uint8Array {
  const named = indexedLayerOf(blob, tar)
  const { map, toc } = decodeSideIndex(sideIndex, named)
  const entries = toc.entries.map((entry) =>
    entry.path === 'file-3' ? { ...entry, path: 'file-x' } : entry,
  )
  return encodeSideIndex(named, { map, toc: { ...toc, entries } })
}

/** The index with the SHA-256 of one span changed: its bytes can never be had by it. `lie` may change its table of contents. */
function brokenIndex(span: number, lie = (toc: LayerToc): LayerToc => toc): Uint8Array {
  const named = indexedLayerOf(blob, tar)
  const { map, toc } = decodeSideIndex(sideIndex, named)
  const bytes = Buffer.from(map.toBytes())
  // Header 32 bytes, records 52, the hash last in each (seek-index-format.ts).
  const at = 32 + 52 * (span + 1) - 1
  bytes[at] = (bytes[at] ?? 0) ^ 1
  return encodeSideIndex(named, { map: GzipLayerMap.fromBytes(bytes), toc: lie(toc) })
}

/** The table of contents with a file whose content has to be copied into the metadata image: its end is no whole block. */
function copiedFile(toc: LayerToc): LayerToc {
  const entries = toc.entries.map((entry) => {
    const [first] = entry.extents ?? []
    if (entry.path !== 'file-0' || first === undefined) return entry
    return { ...entry, size: 2000, extents: [{ ...first, length: 100 }] }
  })
  return { ...toc, entries }
}

describe('a gzip layer with an index beside its image', () => {
  test(
    'is mounted with no byte of its blob fetched, and reads as its tar',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [{ ...layer, sideIndex }])
      const node = await openNode(blocks)
      await node.pull(image)
      expect(node.snapshotter.layers()).toMatchObject([
        { format: 'tar+gzip', state: 'ready', presentBytes: 0, layerSize: tar.length },
      ])
      expect(node.snapshotter.layers()[0]?.notLazyBecause).toBeUndefined()
      // Leaves of the blob are of this length; the index is shorter.
      const lengths = blocks.asked.map((cid) => blocks.blocks.get(cid)?.length)
      expect(lengths).not.toContain(262_144)

      await using mounted = await node.mount(image)
      await using file = await open(join(mounted.path, 'file-7'))
      const { buffer } = await file.read(Buffer.alloc(4096), 0, 4096, 1_000_000)
      expect(
        buffer.equals(randomContent(seeded(7), 2_000_000).subarray(1_000_000, 1_004_096)),
      ).toBe(true)
      expect(node.snapshotter.layers()[0]?.presentBytes).toBeLessThan(tar.length / 2)
      for (let index = 0; index < 12; index++) {
        const content = await readFile(join(mounted.path, `file-${index}`))
        expect(content.equals(randomContent(seeded(index), 2_000_000)), `file-${index}`).toBe(true)
      }
    },
    deadlineMs,
  )

  test(
    'any range of it is that of the plain tar, and all of it has the diff ID',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [{ ...layer, sideIndex }])
      const node = await openNode(blocks)
      await node.pull(image)
      await using mounted = await node.mount(image)
      const random = seeded(5)
      for (let read = 0; read < 100; read++) {
        const index = random(12)
        const [at, length] = [random(1_900_000), 1 + random(100_000)]
        await using file = await open(join(mounted.path, `file-${index}`))
        const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, at)
        const expected = randomContent(seeded(index), 2_000_000).subarray(at, at + bytesRead)
        expect(expected.equals(buffer.subarray(0, bytesRead)), `read ${read}`).toBe(true)
      }
      await fetchWhole(node, image)
      expect(node.snapshotter.layers()).toMatchObject([{ isComplete: true, verified: true }])
    },
    deadlineMs,
  )

  test(
    'is mounted by it after a restart too, and asks for nothing again',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [{ ...layer, sideIndex }])
      const node = await openNode(blocks)
      await node.pull(image)
      await node.stop()
      await node.start(new MemoryBlocks())
      await using mounted = await node.mount(image)
      expect((await stat(join(mounted.path, 'file-3'))).size).toBe(2_000_000)
    },
    deadlineMs,
  )
})

describe('an index that cannot be used', () => {
  const otherTar = makeTar({ name: 'other', content: randomContent(seeded(40), 3_000_000) })
  const otherBlob = gzipSync(otherTar)
  const cut = sideIndex.subarray(0, sideIndex.length - 100)
  const unusable = [
    ['is of another layer', async () => sideIndexOf(otherBlob, otherTar)],
    ['is cut off', async () => cut],
    ['is no index at all', async () => otherTar.subarray(0, 2000)],
    ['is wrong about bytes that its mount needs', async () => brokenIndex(0, copiedFile)],
    ['costs more than the layer', async () => Buffer.concat([blob, blob])],
  ] as const

  test.each(unusable)(
    'because it %s is said to be so, and the layer is read whole',
    async (_, make) => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [{ ...layer, sideIndex: await make() }])
      const node = await openNode(blocks)
      await node.pull(image)
      expect(node.snapshotter.layers()).toMatchObject([{ verified: true, isComplete: true }])
      const said = node.log.sentences.filter((sentence) => sentence.includes('cannot be used'))
      expect(said).toHaveLength(1)
      await using mounted = await node.mount(image)
      const content = await readFile(join(mounted.path, 'file-3'))
      expect(content.equals(randomContent(seeded(3), 2_000_000))).toBe(true)
    },
    deadlineMs,
  )

  test(
    'because no peer has it is said to be so, and the layer is read whole',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [{ ...layer, sideIndex }])
      const without: BlockSource = {
        get: (cid, request) => {
          const block = blocks.blocks.get(cid.toString())
          if (block !== undefined && Buffer.from(block).includes('IPDRSIX1')) {
            blocks.blocks.delete(cid.toString())
          }
          return blocks.get(cid, request)
        },
      }
      const node = await openNode(without)
      await node.pull(image)
      expect(node.snapshotter.layers()).toMatchObject([{ verified: true, isComplete: true }])
      expect(node.log.sentences.filter((said) => said.includes('cannot be used'))).toHaveLength(1)
    },
    deadlineMs,
  )

  test(
    'because nobody has their directory is said to be so, and the layer is read whole',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [{ ...layer, sideIndex }])
      const root = decode(blocks.blocks.get(image.root.toString()) ?? new Uint8Array())
      const directory = root.Links.find(({ Name }) => Name === 'indexes')
      expect(blocks.blocks.delete(String(directory?.Hash))).toBe(true)
      const node = await openNode(blocks)
      await node.pull(image)
      expect(node.snapshotter.layers()).toMatchObject([{ verified: true, isComplete: true }])
      expect(node.log.sentences.filter((said) => said.includes('cannot be used'))).toHaveLength(1)
    },
    deadlineMs,
  )

  test(
    'because two layers have exchanged theirs leaves both read whole',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [
        { ...layer, sideIndex: await sideIndexOf(otherBlob, otherTar) },
        { blob: otherBlob, diffId: digestOf(otherTar), sideIndex },
      ])
      const node = await openNode(blocks)
      await node.pull(image)
      expect(node.snapshotter.layers()).toMatchObject([{ verified: true }, { verified: true }])
    },
    deadlineMs,
  )

  test(
    'because a span of it is wrong fails the reads of that span, and no others',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [{ ...layer, sideIndex: brokenIndex(2) }])
      const node = await openNode(blocks)
      await node.pull(image)
      await using mounted = await node.mount(image)
      const good = await readFile(join(mounted.path, 'file-0'))
      expect(good.equals(randomContent(seeded(0), 2_000_000))).toBe(true)
      // Bytes 8.4 to 12.6 million of the tar.
      expect(await failureOf(() => readFile(join(mounted.path, 'file-5')))).toMatchObject({
        code: 'EIO',
      })
    },
    deadlineMs,
  )
})

// A layer is one on the node, whichever image names it. So an index, which is the word of one image's publisher, must not
// speak for another image.
describe('an index that lies about a layer which another image has too', () => {
  test(
    'is found out before the other image is handed out',
    async () => {
      for (const lie of [lyingIndex(), brokenIndex(4)]) {
        const blocks = new MemoryBlocks()
        const liar = await publishImage(blocks, [{ ...layer, sideIndex: lie }])
        for (const honestly of [layer, { ...layer, sideIndex }]) {
          const honest = await publishImage(blocks, [honestly])
          const node = await openNode(blocks)
          await node.pull(liar)
          await node.serve(honest)
          expect(node.snapshotter.layers()).toMatchObject([{ state: 'corrupt' }])
          expect(node.verificationFailures).toEqual(['toc'])
          // containerd has a snapshot of that name and takes it: it must not start on what the liar said.
          const failure = await failureOf(() => node.view(honest))
          expect(failure).toMatchObject({ code: 'DATA_LOSS' })
          expect(failure.message).toContain('ipdr cache rm')
        }
      }
    },
    deadlineMs,
  )

  test(
    'an honest one is not believed either, but checked, and then serves both',
    async () => {
      const blocks = new MemoryBlocks()
      const indexed = await publishImage(blocks, [{ ...layer, sideIndex }])
      const plain = await publishImage(blocks, [layer])
      const node = await openNode(blocks)
      await node.pull(indexed)
      expect(node.snapshotter.layers()).toMatchObject([{ verified: false }])
      await node.pull(plain)
      expect(node.snapshotter.layers()).toMatchObject([{ verified: true, isComplete: true }])
    },
    deadlineMs,
  )

  test(
    'and a second pull of the image that brought it costs nothing',
    async () => {
      const blocks = new MemoryBlocks()
      const image = await publishImage(blocks, [{ ...layer, sideIndex }])
      const node = await openNode(blocks)
      await node.pull(image)
      await node.pull(image)
      expect(node.snapshotter.layers()).toMatchObject([{ verified: false, presentBytes: 0 }])
    },
    deadlineMs,
  )

  test(
    'is not used for a layer that was lost, whichever image makes it be built again',
    async () => {
      for (const by of ['container', 'pull'] as const) {
        const blocks = new MemoryBlocks()
        const honest = await publishImage(blocks, [layer])
        const node = await openNode(blocks)
        await node.pull(honest)
        const liar = await publishImage(blocks, [{ ...layer, sideIndex: lyingIndex() }])
        await node.serve(liar)
        await node.stop()
        await writeFile(join(node.root, 'layers/1/map'), 'damaged')
        await node.start(blocks)
        if (by === 'pull') {
          const { signal } = new AbortController()
          const options = { all: false, signal, onProgress: () => {} }
          await node.snapshotter.pull(liar.root.toString(), options)
        }
        await using mounted = await node.mount(honest)
        expect((await stat(join(mounted.path, 'file-3'))).size).toBe(2_000_000)
        expect(node.snapshotter.layers()).toMatchObject([{ verified: true }])
      }
    },
    deadlineMs,
  )

  test(
    'is not used where the other image came first and has not been built yet',
    async () => {
      const blocks = new MemoryBlocks()
      const honest = await publishImage(blocks, [layer])
      const liar = await publishImage(blocks, [{ ...layer, sideIndex: lyingIndex() }])
      const node = await openNode(blocks)
      await node.serve(honest)
      await node.pull(liar)
      expect(node.snapshotter.layers()).toMatchObject([{ verified: true, isComplete: true }])
    },
    deadlineMs,
  )
})

test('a catalog of the version before knows its layers still, none of them by an index', async () => {
  await using scratch = Scratch.open('catalog')
  const path = join(scratch.dir, 'catalog.db')
  {
    await using catalog = new Catalog(path)
    const layer = {
      blobCid: 'bafy',
      blobDigest: digestOf(blob),
      diffId: digestOf(tar),
      mediaType: 'any',
      blobSize: 1,
    }
    catalog.beginLayer(layer)
  }
  const before = new DatabaseSync(path)
  before.exec('ALTER TABLE layers DROP COLUMN index_cid')
  before.exec('ALTER TABLE image_layers DROP COLUMN index_cid')
  before.exec('ALTER TABLE images DROP COLUMN trusted_by')
  before.exec('DROP TABLE image_origins')
  before.exec('PRAGMA user_version = 1')
  before.close()
  await using catalog = new Catalog(path)
  expect(catalog.layers()).toMatchObject([{ blobCid: 'bafy', indexCid: undefined }])
})
