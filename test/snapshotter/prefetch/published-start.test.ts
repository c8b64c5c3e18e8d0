import type { CID } from 'multiformats/cid'
import { expect, test } from 'vitest'
import { listUnixfsDirectory } from '../../../snapshotter/dag/unixfs-path.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { findStartBlocks } from '../../../snapshotter/prefetch/find-start-blocks.ts'
import type { PrefetchList } from '../../../snapshotter/prefetch/prefetch-list.ts'
import {
  addPublishedLists,
  findPublishedStart,
  readStartBlocks,
  readStartNodes,
} from '../../../snapshotter/prefetch/published-list.ts'
import { addFilesBeside } from '../../../snapshotter/publish/add-files-beside.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'
import { pushTars } from '../layers/pushed-image.ts'

const { signal } = new AbortController()
const request = { priority: 'foreground', signal } as const

const CONTENT = randomContent(seeded(3), 300_000)
const TAR = makeTar(
  { name: 'before', content: randomContent(seeded(4), 300_000) },
  { name: 'read', content: CONTENT },
)
const LIST: PrefetchList = {
  layers: [{ diffId: digestOf(TAR), layerSize: TAR.length }],
  ranges: [
    {
      layer: 0,
      path: 'read',
      fileSize: CONTENT.length,
      fileOffset: 0,
      layerOffset: TAR.indexOf(CONTENT),
      length: CONTENT.length,
    },
  ],
}

function sinkOf(blocks: MemoryBlocks): { put(cid: CID, block: Uint8Array): Promise<void> } {
  return { put: async (cid, block) => void blocks.blocks.set(cid.toString(), block) }
}

test('the start of the only manifest has no digest in its name, that of one of several has', async () => {
  const blocks = new MemoryBlocks()
  const parts = { blocks, sink: sinkOf(blocks), signal }
  const image = await pushTars(blocks, [TAR])
  const other = await pushTars(blocks, [makeTar({ name: 'other', content: 'image' })])
  const names = async (root: CID): Promise<string[]> =>
    (await listUnixfsDirectory(root, blocks, request)).map(({ name }) => name)
  const lists = new Map([[image.manifestDigest, LIST]])
  const alone = await addPublishedLists(image.root, lists, parts)
  expect(await names(alone)).toEqual(expect.arrayContaining(['start.blocks', 'start.car']))
  expect((await findPublishedStart(alone, undefined, blocks, request)).blocks).toBeDefined()

  const tags = { directory: 'manifests', files: new Map([['other', other.manifest]]) }
  const two = await addFilesBeside(image.root, [tags], parts, request)
  const beside = await addPublishedLists(two, lists, parts)
  const name = `start-${image.manifestDigest}`
  expect(await names(beside)).toEqual(expect.arrayContaining([`${name}.blocks`, `${name}.car`]))
  const nothing = { blocks: undefined, nodes: undefined }
  expect(await findPublishedStart(beside, undefined, blocks, request)).toEqual(nothing)
  expect(await findPublishedStart(beside, other.manifestDigest, blocks, request)).toEqual(nothing)
  const found = await findPublishedStart(beside, image.manifestDigest, blocks, request)
  expect(found.blocks).toBeDefined()
})

// Goal: a pull need not ask for anything that a start does not name. Method: pull and read with no other blocks to be had.
test('what a start names is all that opening the image and reading its list takes', async () => {
  const blocks = new MemoryBlocks()
  const image = await pushTars(blocks, [TAR])
  const lists = new Map([[image.manifestDigest, LIST]])
  const root = await addPublishedLists(image.root, lists, { blocks, sink: sinkOf(blocks), signal })
  const found = await findPublishedStart(root, undefined, blocks, request)
  if (found.blocks === undefined || found.nodes === undefined) throw new Error('nothing was found')
  const nodes = await readStartNodes(found.nodes, blocks, request)
  const leaves = await readStartBlocks(found.blocks, blocks, request)
  const bytesOf = (cid: CID): number => blocks.blocks.get(cid.toString())?.length ?? 0
  const listed = leaves.flatMap(({ cid, opens }) => (opens === undefined ? [cid] : []))
  const listedBytes = listed.reduce((sum, cid) => sum + bytesOf(cid), 0)
  // Half of what the random content has: it is runs and noise.
  expect(listedBytes).toBeGreaterThan(120_000)
  expect(listedBytes).toBeLessThan(200_000)
  const given = new MemoryBlocks()
  const rootBlock = blocks.blocks.get(root.toString())
  if (rootBlock === undefined) throw new Error('the root is gone')
  given.blocks.set(root.toString(), rootBlock)
  for (const { cid, bytes } of nodes) given.blocks.set(cid.toString(), bytes)
  for (const { cid } of leaves) {
    given.blocks.set(cid.toString(), blocks.blocks.get(cid.toString()) ?? Buffer.alloc(0))
  }
  const of = { root, manifest: image.manifestDigest }
  const again = await findStartBlocks(of, LIST, { blocks: given, request })
  expect(again.blocks.map(({ cid }) => cid.toString())).toEqual(
    leaves.map(({ cid }) => cid.toString()),
  )
  expect(again.nodes).toHaveLength(nodes.length)
})
