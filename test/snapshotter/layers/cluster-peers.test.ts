import { generateKeyPairSync } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { expect, onTestFinished, test } from 'vitest'
import type { ClusterPeers } from '../../../snapshotter/cluster-peers.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { LearnedLists } from '../../../snapshotter/prefetch/learned-lists.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { sideIndexOf } from '../../support/side-index-of.ts'
import { LazyNode } from './lazy-node.ts'
import { encryptedLayer, indexedLayer, publishImage, type TestLayer } from './published-image.ts'

const deadlineMs = 60_000
const content = randomContent(seeded(8), 9_000_000)
const tar = makeTar({ name: 'large', content }, { name: 'small', content: Buffer.from('hello') })
const blob = gzipSync(tar, { level: 1 })
const layer: TestLayer = { blob, diffId: digestOf(tar) }
const index = await sideIndexOf(blob, tar)

async function openNode(blocks: MemoryBlocks, peers: ClusterPeers): Promise<LazyNode> {
  const node = await LazyNode.open(blocks)
  onTestFinished(() => node[Symbol.asyncDispose]())
  await node.stop()
  node.peers = peers
  await node.start(blocks)
  return node
}

/** Peers that give this index, and note what they are asked. */
function peersWith(bytes: Uint8Array | undefined): ClusterPeers & { readonly asked: string[] } {
  const asked: string[] = []
  return {
    asked,
    sideIndex: async (cid) => {
      asked.push(cid)
      return bytes && { bytes, peer: 'peer https://10.0.0.7' }
    },
    prefetchList: () => Promise.resolve(undefined),
  }
}

test(
  'a gzip layer that a peer has read is mounted by its index, and only what is read of it is fetched',
  async () => {
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [layer])
    const peers = peersWith(index)
    const node = await openNode(blocks, peers)
    await node.pull(image)
    await using mounted = await node.mount(image)
    expect(await readFile(join(mounted.path, 'small'), 'utf8')).toBe('hello')
    const [record] = node.snapshotter.layers()
    expect(record).toMatchObject({ format: 'tar+gzip', isComplete: false, verified: false })
    expect(peers.asked).toEqual([record?.blobCid])
    expect((await readFile(join(mounted.path, 'large'))).equals(content)).toBe(true)
  },
  deadlineMs,
)

test.each([
  [
    'of another layer',
    async () => sideIndexOf(gzipSync(makeTar({ name: 'x' })), makeTar({ name: 'x' })),
  ],
  ['that is damaged', async () => Buffer.from(index).fill(0, 100, 110)],
  ['that is no index', async () => Buffer.from('hello')],
])(
  'an index %s is not used: the layer is read whole, and the log names the peer',
  async (_, make) => {
    const blocks = new MemoryBlocks()
    const image = await publishImage(blocks, [layer])
    const node = await openNode(blocks, peersWith(await make()))
    await node.pull(image)
    expect(node.snapshotter.layers()).toMatchObject([{ verified: true, isComplete: true }])
    expect(node.log.sentences.join('\n')).toMatch(
      /the index from peer https:\/\/10.0.0.7 cannot be used/,
    )
    await using mounted = await node.mount(image)
    expect((await readFile(join(mounted.path, 'large'))).equals(content)).toBe(true)
  },
  deadlineMs,
)

test(
  'peers are not asked about layers that say where their table of contents is, nor about encrypted ones',
  async () => {
    const blocks = new MemoryBlocks()
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    const layers = [
      await indexedLayer(makeTar({ name: 'own' })),
      await encryptedLayer(layer, [privateKey]),
    ]
    const image = await publishImage(blocks, layers)
    const peers = peersWith(index)
    const node = await openNode(blocks, peers)
    node.keys.push(privateKey)
    await node.pull(image)
    expect(peers.asked).toEqual([])
    expect(node.snapshotter.layers()).toHaveLength(2)
  },
  deadlineMs,
)

test(
  'what a node learned of an image with an encrypted layer is for nobody else',
  async () => {
    const blocks = new MemoryBlocks()
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    const image = await publishImage(blocks, [
      await encryptedLayer(await indexedLayer(tar), [privateKey]),
    ])
    const node = await openNode(blocks, peersWith(undefined))
    node.keys.push(privateKey)
    await node.pull(image)
    const list = {
      layers: [{ diffId: digestOf(tar), layerSize: tar.length }],
      ranges: [
        { layer: 0, path: 'small', fileSize: 5, fileOffset: 0, layerOffset: 9_001_984, length: 5 },
      ],
    }
    const lists = await LearnedLists.open(join(node.root, 'prefetch'))
    await lists.keep(image.chainIds.at(-1) ?? '', 'learned', list)
    await expect(node.snapshotter.learnedList(image.chainIds.at(-1) ?? '')).rejects.toThrow(
      /no prefetch list of .* for others/,
    )
  },
  deadlineMs,
)
