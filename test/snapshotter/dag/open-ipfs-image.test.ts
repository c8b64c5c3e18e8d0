import { CID } from 'multiformats/cid'
import { expect, test } from 'vitest'
import type { BlockRequest } from '../../../snapshotter/block-source.ts'
import { openIpfsImage } from '../../../snapshotter/dag/open-ipfs-image.ts'
import { CodedError } from '../../../snapshotter/errors.ts'
import { MEDIA_TYPES } from '../../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'
import { testImage } from '../../support/test-image.ts'

const request: BlockRequest = { priority: 'foreground', signal: new AbortController().signal }
const image = testImage([new Uint8Array(300_000).fill(7)])
const [layer] = image.layers
if (layer === undefined) throw new Error('one layer')

const REF_NAME = 'org.opencontainers.image.ref.name'

type Described = { mediaType: string; digest: string; size: number; urls?: string[] }

function described(bytes: Uint8Array, mediaType: string, cid?: CID): Described {
  const facts = { mediaType, digest: digestOf(bytes), size: bytes.length }
  return cid === undefined ? facts : { ...facts, urls: [`ipfs://${cid.toString()}`] }
}

const json = (value: unknown): Uint8Array => Buffer.from(JSON.stringify(value))

/** As nerdctl writes it: each blob its own file, each descriptor with its address. */
async function addIpcr(
  blocks: MemoryBlocks,
): Promise<{ root: CID; top: Described; manifest: Uint8Array }> {
  const config = described(image.config, MEDIA_TYPES.ociConfig, await blocks.addFile(image.config))
  const bytes = layer?.bytes ?? new Uint8Array()
  const type = 'application/vnd.oci.image.layer.v1.tar'
  const layers = [described(bytes, type, await blocks.addFile(bytes))]
  const manifest = json({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config, layers })
  const top = described(manifest, MEDIA_TYPES.ociManifest, await blocks.addFile(manifest))
  return { root: await blocks.addFile(json(top)), top, manifest }
}

function ociFiles(entries: readonly unknown[]): Record<string, Uint8Array> {
  const blob = (bytes: Uint8Array): [string, Uint8Array] => [
    `blobs/sha256/${digestOf(bytes).slice(7)}`,
    bytes,
  ]
  return {
    'oci-layout': json({ imageLayoutVersion: '1.0.0' }),
    'index.json': json({ schemaVersion: 2, manifests: entries }),
    ...Object.fromEntries([image.manifest, image.config, layer?.bytes ?? image.config].map(blob)),
  }
}

const named = (tag?: string): unknown => ({
  ...described(image.manifest, MEDIA_TYPES.ociManifest),
  ...(tag === undefined ? {} : { annotations: { [REF_NAME]: tag } }),
})

test('a file with a descriptor is an image, whose parts lie at the ipfs:// addresses', async () => {
  const blocks = new MemoryBlocks()
  const { root, top, manifest } = await addIpcr(blocks)
  // CIDv0, as ipfs add writes by default.
  const v0 = await blocks.addFile(json(top), { cidVersion: 0, rawLeaves: false })
  expect(v0.version).toBe(0)
  for (const cid of [root, v0]) {
    const opened = await openIpfsImage(cid, blocks, request)
    // A blob first: nothing was read yet that names it.
    expect((await opened.blob(layer.digest, request)).size).toBe(300_000)
    for (const reference of ['latest', top.digest]) {
      const found = await opened.manifest(reference, request)
      expect(found.digest).toBe(top.digest)
      expect(Buffer.from(found.bytes)).toEqual(Buffer.from(manifest))
    }
    expect(await opened.tags(request)).toEqual(['latest'])
    const cids = await opened.blobCids([layer.digest, image.configDigest], request)
    expect([...cids.keys()]).toEqual([layer.digest, image.configDigest])
    const other = await failureOf(() => opened.manifest('v2', request))
    expect(other.code).toBe('NOT_FOUND')
    expect(other.message).toMatch(/has no manifest v2; its tags are: latest/)
    const missing = digestOf(Buffer.from('missing'))
    expect((await failureOf(() => opened.blob(missing, request))).code).toBe('NOT_FOUND')
  }
})

test('a descriptor of an index leads to the images of its platforms, and one that was not published hides no other', async () => {
  const blocks = new MemoryBlocks()
  const { top } = await addIpcr(blocks)
  const lost = { ...described(Buffer.from('lost'), MEDIA_TYPES.ociManifest), size: 4 }
  const index = json({ schemaVersion: 2, manifests: [lost, top] })
  const indexDescriptor = described(index, MEDIA_TYPES.ociIndex, await blocks.addFile(index))
  const root = await blocks.addFile(json(indexDescriptor))
  const opened = await openIpfsImage(root, blocks, request)
  expect((await opened.blob(image.configDigest, request)).size).toBe(image.config.length)
  expect((await opened.manifest('latest', request)).mediaType).toBe(MEDIA_TYPES.ociIndex)
  expect((await opened.manifest(top.digest, request)).digest).toBe(top.digest)
  const failure = await failureOf(() => opened.manifest(lost.digest, request))
  expect(failure.message).toMatch(/has no ipfs:\/\/<cid> in its urls/)
})

test('an address that holds other bytes than its descriptor says is refused', async () => {
  const blocks = new MemoryBlocks()
  const { top, manifest } = await addIpcr(blocks)
  const forged = Uint8Array.from(manifest)
  forged[forged.length - 1] = 0x20
  for (const [bytes, reason] of [
    [forged, /have digest sha256:/],
    [manifest.subarray(1), /its descriptor says/],
  ] as const) {
    const urls = [`ipfs://${(await blocks.addFile(bytes)).toString()}`]
    const opened = await openIpfsImage(
      await blocks.addFile(json({ ...top, urls })),
      blocks,
      request,
    )
    const failure = await failureOf(() => opened.manifest('latest', request))
    expect(failure).toMatchObject({ name: 'ImageError', code: 'DATA_LOSS' })
    expect(failure.message).toMatch(reason)
  }
})

test('a directory with an OCI layout is an image, whose tags are the names in index.json', async () => {
  const blocks = new MemoryBlocks()
  const root = await blocks.addDirectory(ociFiles([named('v1')]))
  for (const cid of [root, CID.createV0(root.multihash as never)]) {
    const opened = await openIpfsImage(cid, blocks, request)
    for (const reference of ['latest', 'v1', image.manifestDigest]) {
      expect((await opened.manifest(reference, request)).digest).toBe(image.manifestDigest)
    }
    expect(await opened.tags(request)).toEqual(['v1'])
    expect((await opened.blob(layer.digest, request)).size).toBe(300_000)
    expect((await opened.blobCids([layer.digest], request)).size).toBe(1)
    const failure = await failureOf(() => opened.manifest('v2', request))
    expect(failure.message).toMatch(/has no manifest v2; its tags are: v1/)
  }
})

test('the only manifest of an OCI layout needs no name, and one name for two is ambiguous', async () => {
  const blocks = new MemoryBlocks()
  const open = async (entries: readonly unknown[]) =>
    openIpfsImage(await blocks.addDirectory(ociFiles(entries)), blocks, request)
  const unnamed = await open([named()])
  expect(await unnamed.tags(request)).toEqual(['latest'])
  expect((await unnamed.manifest('latest', request)).digest).toBe(image.manifestDigest)
  const other = {
    ...described(image.config, MEDIA_TYPES.ociManifest),
    annotations: { [REF_NAME]: 'v1' },
  }
  const several = await open([named('v1'), other])
  const failure = await failureOf(() => several.manifest('v1', request))
  expect(failure.code).toBe('FAILED_PRECONDITION')
  expect(failure.message).toMatch(/several manifests under v1: .* ask for one by its digest/)
  expect((await failureOf(() => several.manifest('latest', request))).code).toBe('NOT_FOUND')
})

test('a refusal names the layouts that are read', async () => {
  const blocks = new MemoryBlocks()
  const failure = await failureOf(async () =>
    openIpfsImage(await blocks.addFile(Buffer.from('hello')), blocks, request),
  )
  expect(failure.message).toMatch(/a file of 5 bytes; .*manifests\/<tag>.*OCI layout.*descriptor/)
})

test.each(['descriptor', 'index.json'])(
  'a mutated %s is a coded refusal or a right answer',
  async (what) => {
    const random = seeded(what.length)
    const blocks = new MemoryBlocks()
    const { top } = await addIpcr(blocks)
    const files = ociFiles([named('v1')])
    const original = what === 'descriptor' ? json(top) : (files['index.json'] ?? json({}))
    for (let round = 0; round < 2000; round++) {
      const bytes = Uint8Array.from(original)
      for (let edits = random(3); edits >= 0; edits--) bytes[random(bytes.length)] = random(256)
      try {
        const root =
          what === 'descriptor'
            ? await blocks.addFile(bytes)
            : await blocks.addDirectory({
                'oci-layout': json({ imageLayoutVersion: '1.0.0' }),
                'index.json': bytes,
              })
        const opened = await openIpfsImage(root, blocks, request)
        const { bytes: found, digest } = await opened.manifest('latest', request)
        expect(digestOf(found)).toBe(digest)
      } catch (error) {
        if (!(error instanceof CodedError)) throw error
      }
    }
  },
)

test('a blob of an OCI layout that lies under the digest of another is refused', async () => {
  const blocks = new MemoryBlocks()
  const path = `blobs/sha256/${image.manifestDigest.slice(7)}`
  const forged = Buffer.concat([image.manifest, Buffer.from(' ')])
  const root = await blocks.addDirectory({ ...ociFiles([named('v1')]), [path]: forged })
  const opened = await openIpfsImage(root, blocks, request)
  const failure = await failureOf(() => opened.manifest('v1', request))
  expect(failure).toMatchObject({ name: 'ImageError', code: 'DATA_LOSS' })
  expect(failure.message).toContain(`asked for was ${image.manifestDigest}`)
})

test('an OCI layout of a version that is not known, or whose index.json is a manifest, is refused with the reason', async () => {
  const blocks = new MemoryBlocks()
  const files = ociFiles([named('v1')])
  for (const [changed, reason] of [
    [
      { 'oci-layout': json({ imageLayoutVersion: '2.0.0' }) },
      /imageLayoutVersion: must be 1\.0\.0/,
    ],
    [{ 'index.json': image.manifest }, /index\.json of .* is a manifest, it must be an index/],
  ] as const) {
    const root = await blocks.addDirectory({ ...files, ...changed })
    const failure = await failureOf(() => openIpfsImage(root, blocks, request))
    expect(failure).toMatchObject({ name: 'ImageError', code: 'INVALID_ARGUMENT' })
    expect(failure.message).toMatch(reason)
  }
})
