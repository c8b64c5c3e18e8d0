import { UnixFS } from 'ipfs-unixfs'
import { CID } from 'multiformats/cid'
import { expect, test } from 'vitest'
import type { BlockRequest } from '../../../snapshotter/block-source.ts'
import { IpdrImage } from '../../../snapshotter/dag/ipdr-image.ts'
import { openIpfsImage } from '../../../snapshotter/dag/open-ipfs-image.ts'
import { resolveUnixfsPath } from '../../../snapshotter/dag/unixfs-path.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { testImage } from '../../support/test-image.ts'

const request: BlockRequest = { priority: 'foreground', signal: new AbortController().signal }
const image = testImage([new Uint8Array(300_000).fill(7)])

// CIDs that the existing publisher's writer gives the same bytes (interop vectors "ipdrImage": kubo 0.23 settings).
const VECTORS = {
  root: 'bafybeifsgierqdgmnlaawzggr4glgew5wnyzxwx3sqbx2bexjizsgp4aay',
  manifests: 'bafybeifpob6fy4nncbcekdiikpecla6r5lcuqh5yrbj5a4yye2ov7d32m4',
  blobs: 'bafybeig6hasuzhgq6q7befddlxpfn4zvyvpig6m2jyhmdx3ausp6agiw6u',
  manifest: 'bafkreib5a2kq3lezv5uwac5t3ajcrfrpy346aqhlbcep7wem3tp6czppry',
  config: 'bafkreigfwhldmbhsondc543pvwwddawuhltkme4hghhvsszrja246hadj4',
  layer: 'bafybeifkhqdf426lf6kl5oshczyo2ahhhib6zxruehy2yo72ay74kukg3q',
  manifestSha256: '3d06950dac99af69600bb3d81228962fc6f9e040eb0888ffd88cdcdfe165ef8e',
}

test('the image of the interop vectors is found part by part under its root', async () => {
  const blocks = new MemoryBlocks()
  const root = await blocks.addDirectory(image.files)
  expect(root.toString()).toBe(VECTORS.root)
  const opened = await IpdrImage.open(root, blocks, request)
  if (opened === undefined) throw new Error('it has both directories')
  for (const reference of ['latest', image.manifestDigest]) {
    const manifest = await opened.manifest(reference, request)
    expect(manifest.digest).toBe(`sha256:${VECTORS.manifestSha256}`)
    expect(Buffer.from(manifest.bytes)).toEqual(Buffer.from(image.manifest))
    expect(manifest.mediaType).toBe('application/vnd.oci.image.manifest.v1+json')
  }
  const [layer] = image.layers
  if (layer === undefined) throw new Error('one layer')
  const blob = await opened.blob(layer.digest, request)
  expect(blob.cid.toString()).toBe(VECTORS.layer)
  expect(blob.size).toBe(300_000)
  const entries = Object.fromEntries(
    (await opened.entries(request)).map(({ folder, name, cid }) => [
      `${folder}/${name}`,
      cid.toString(),
    ]),
  )
  expect(entries).toEqual({
    'manifests/latest': VECTORS.manifest,
    [`manifests/${image.manifestDigest}`]: VECTORS.manifest,
    [`blobs/${image.configDigest}`]: VECTORS.config,
    [`blobs/${layer.digest}`]: VECTORS.layer,
  })
  expect(await opened.tags(request)).toEqual(['latest'])
})

test('a directory sharded into a HAMT is read like any other', async () => {
  const blocks = new MemoryBlocks()
  const filler = Object.fromEntries(
    Array.from({ length: 300 }, (_, n) => [
      `blobs/${digestOf(Buffer.from(`${n}`))}`,
      Buffer.from(`${n}`),
    ]),
  )
  const root = await blocks.addDirectory(
    { ...image.files, ...filler },
    { shardSplitThresholdBytes: 1_000 },
  )
  const opened = await IpdrImage.open(root, blocks, request)
  if (opened === undefined) throw new Error('it has both directories')
  for (const n of [0, 150, 299]) {
    const blob = await opened.blob(digestOf(Buffer.from(`${n}`)), request)
    const bytes = await blob.readRange({ start: 0, end: blob.size }, request)
    expect(Buffer.from(bytes).toString()).toBe(`${n}`)
  }
  expect((await opened.entries(request)).filter(({ folder }) => folder === 'blobs')).toHaveLength(
    302,
  )
  const missing = digestOf(Buffer.from('300'))
  expect((await failureOf(() => opened.blob(missing, request))).code).toBe('NOT_FOUND')
})

test('latest stands for the only tag there is, and for none of several', async () => {
  const blocks = new MemoryBlocks()
  const one = await blocks.addDirectory({ 'manifests/v1': image.manifest, 'blobs/x': image.config })
  const opened = await openIpfsImage(one, blocks, request)
  expect((await opened.manifest('latest', request)).digest).toBe(image.manifestDigest)
  expect((await opened.manifest(image.manifestDigest, request)).digest).toBe(image.manifestDigest)
  const two = await blocks.addDirectory({
    'manifests/v1': image.manifest,
    'manifests/v2': image.manifest,
    'blobs/x': image.config,
  })
  const several = await openIpfsImage(two, blocks, request)
  const failure = await failureOf(() => several.manifest('latest', request))
  expect(failure.code).toBe('NOT_FOUND')
  expect(failure.message).toMatch(/has no manifest latest; its tags are: v1, v2/)
})

test('a manifest filed under the digest of another is refused with both digests', async () => {
  const blocks = new MemoryBlocks()
  const other = digestOf(Buffer.from('other'))
  const root = await blocks.addDirectory({ ...image.files, [`manifests/${other}`]: image.manifest })
  const opened = await openIpfsImage(root, blocks, request)
  const failure = await failureOf(() => opened.manifest(other, request))
  expect(failure).toMatchObject({ name: 'ImageError', code: 'DATA_LOSS' })
  expect(failure.message).toContain(`have digest ${image.manifestDigest}, asked for was ${other}`)
})

test.each([
  [
    'a file',
    (blocks: MemoryBlocks) => blocks.addFile(Buffer.from('hello')),
    /it is a file of 5 bytes/,
  ],
  [
    'a directory of other things',
    (blocks: MemoryBlocks) =>
      blocks.addDirectory({ 'a.txt': Buffer.from('a'), 'b/c': Buffer.from('c') }),
    /it is a directory with a\.txt, b; an image is a directory with manifests/,
  ],
  [
    'an empty directory',
    async (blocks: MemoryBlocks) => blocks.addNode(new UnixFS({ type: 'directory' }), []),
    /it is an empty directory/,
  ],
  [
    'a directory in which manifests is a file',
    (blocks: MemoryBlocks) =>
      blocks.addDirectory({ manifests: Buffer.from('a'), 'blobs/x': Buffer.from('c') }),
    /it is a directory with blobs, manifests;/,
  ],
])('a CID that is %s is no image, and the error says what it is', async (_, build, reason) => {
  const blocks = new MemoryBlocks()
  const root = await build(blocks)
  const failure = await failureOf(() => openIpfsImage(root, blocks, request))
  expect(failure).toMatchObject({ name: 'ImageError', code: 'NOT_FOUND' })
  expect(failure.message).toMatch(reason)
})

test('a block that nobody has is not mistaken for a name that does not exist', async () => {
  const blocks = new MemoryBlocks()
  const root = await blocks.addDirectory(image.files)
  blocks.blocks.delete(VECTORS.blobs)
  const failure = await failureOf(() => openIpfsImage(root, blocks, request))
  expect(failure).toMatchObject({ name: 'BlockError', code: 'NOT_FOUND' })
})

test('a shard whose fan-out is absurd, and a path that is too long, are refused', async () => {
  const blocks = new MemoryBlocks()
  const shard = new UnixFS({ type: 'hamt-sharded-directory', fanout: 12n, hashType: 0x22n })
  const cid = blocks.addNode(shard, [])
  const absurd = await failureOf(() => resolveUnixfsPath(cid, ['x'], blocks, request))
  expect(absurd.message).toMatch(/fan-out 12 is not a power of two from 8 to 1024/)
  const path = Array<string>(33).fill('d')
  const long = await failureOf(() => resolveUnixfsPath(cid, path, blocks, request))
  expect(long.code).toBe('RESOURCE_EXHAUSTED')
})

test('names that mean something to a path are names like others here', async () => {
  const blocks = new MemoryBlocks()
  const root = await blocks.addDirectory(image.files)
  for (const name of ['..', '.', '', 'manifests/latest', '/', 'manifests\\/latest']) {
    const failure = await failureOf(() => resolveUnixfsPath(root, [name], blocks, request))
    expect({ ...failure, path: name }).toMatchObject({
      path: name,
      name: 'ImageError',
      code: 'NOT_FOUND',
    })
  }
})

test('a root of CIDv0 is the same image', async () => {
  const blocks = new MemoryBlocks()
  const root = await blocks.addDirectory(image.files)
  const v0 = CID.createV0(root.multihash as never)
  const opened = await openIpfsImage(v0, blocks, request)
  expect((await opened.manifest('latest', request)).digest).toBe(image.manifestDigest)
})
