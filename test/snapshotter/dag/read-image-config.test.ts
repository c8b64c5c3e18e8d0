import { expect, test } from 'vitest'
import { openIpfsImage } from '../../../snapshotter/dag/open-ipfs-image.ts'
import { readImageConfig } from '../../../snapshotter/dag/read-image-config.ts'
import { IMAGE_CONFIG_BYTES_MAX } from '../../../snapshotter/oci/image-config.ts'
import { parseManifest } from '../../../snapshotter/oci/manifest.ts'
import { failureOf } from '../../support/failure-of.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { testImage } from '../../support/test-image.ts'

const request = { priority: 'foreground', signal: new AbortController().signal } as const
const image = testImage([new Uint8Array(1000).fill(7)])
const manifest = parseManifest(image.manifest, 'the manifest')
if (manifest.kind !== 'manifest') throw new Error('an image of one platform')

/** The image, with other bytes where its config should be. */
async function withConfig(bytes: Uint8Array) {
  const blocks = new MemoryBlocks()
  const root = await blocks.addDirectory({
    'manifests/latest': image.manifest,
    [`blobs/${image.configDigest}`]: bytes,
  })
  return openIpfsImage(root, blocks, request)
}

test('a config is read as what it says, and with the bytes that its digest names', async () => {
  const config = await readImageConfig(await withConfig(image.config), manifest, request)
  expect(Buffer.from(config.bytes)).toEqual(Buffer.from(image.config))
  expect(config).toMatchObject({ diffIds: [], platform: { os: 'linux' } })
})

test('a config with other bytes than its digest names is refused, however well it reads', async () => {
  const forged = Buffer.concat([image.config, Buffer.from(' ')])
  const opened = await withConfig(forged)
  const failure = await failureOf(() => readImageConfig(opened, manifest, request))
  expect(failure).toMatchObject({ name: 'ImageError', code: 'DATA_LOSS' })
  expect(failure.message).toContain(`config ${image.configDigest} of ${opened.root.toString()}`)
})

test('a config that is larger than any is refused before all of it was read', async () => {
  const opened = await withConfig(new Uint8Array(IMAGE_CONFIG_BYTES_MAX + 300_000))
  const failure = await failureOf(() => readImageConfig(opened, manifest, request))
  expect(failure).toMatchObject({ name: 'ImageError', code: 'RESOURCE_EXHAUSTED' })
})
