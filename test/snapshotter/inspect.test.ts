import { gzipSync, zstdCompressSync } from 'node:zlib'
import { expect, test } from 'vitest'
import { type ImageInspection, inspectImage } from '../../snapshotter/inspect.ts'
import { MEDIA_TYPES } from '../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { parseImageReference } from '../../snapshotter/oci/reference.ts'
import { makeTar } from '../support/make-tar.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { testImage } from '../support/test-image.ts'
import { skopeoLayer } from './toc/chunked/golden/skopeo-layer.ts'
import { stargzLayers } from './toc/estargz/golden/stargz-layers.ts'

const TAR = makeTar({ name: 'a', content: 'a' })

function json(value: object): Buffer {
  return Buffer.from(JSON.stringify(value))
}

async function inspect(
  files: Readonly<Record<string, Uint8Array>>,
  selector = '',
): Promise<ImageInspection> {
  const blocks = new MemoryBlocks()
  const root = await blocks.addDirectory(files)
  const reference = parseImageReference(`${root.toString()}${selector}`)
  return await inspectImage(reference, { blocks, signal: AbortSignal.timeout(10_000) })
}

test('formats are told by content, and each layer says why it is not lazily readable', async () => {
  const image = testImage([TAR, gzipSync(TAR), zstdCompressSync(TAR), Buffer.alloc(600, 'x')])
  const { tags, manifests } = await inspect(image.files)
  expect(tags).toEqual(['latest'])
  const [manifest] = manifests
  expect(manifest).toMatchObject({
    kind: 'image',
    platform: 'linux/amd64',
    digest: image.manifestDigest,
    layers: [
      { format: 'tar', lazy: { kind: 'headers' }, blobBytes: TAR.length, leaves: 1 },
      { format: 'tar+gzip', lazy: { because: 'gzip without a table of contents' } },
      { format: 'tar+zstd', lazy: { because: 'zstd without a table of contents' } },
      { format: 'unknown', lazy: { because: expect.stringContaining('encrypted or damaged') } },
    ],
  })
})

test("another tool's table of contents is named, with or without its annotations", async () => {
  const { blob } = await skopeoLayer()
  const { manifests } = await inspect(testImage([blob, stargzLayers.plain.blob]).files)
  expect(manifests).toMatchObject([
    {
      layers: [
        {
          format: 'tar+zstd',
          lazy: { kind: 'index', table: 'zstd:chunked', entries: 77, layerBytes: 491_520 },
        },
        { format: 'tar+gzip', lazy: { kind: 'index', table: 'eStargz', entries: 77 } },
      ],
    },
  ])
})

test('a table of contents that is not what the manifest promises is a reason, not a failure', async () => {
  const layer = zstdCompressSync(Buffer.alloc(4096, TAR))
  const { files, configDigest, config } = testImage([layer])
  const manifest = json({
    schemaVersion: 2,
    config: { mediaType: MEDIA_TYPES.ociConfig, digest: configDigest, size: config.length },
    layers: [
      {
        mediaType: 'application/vnd.oci.image.layer.v1.tar+zstd',
        digest: digestOf(layer),
        size: layer.length,
        annotations: { 'io.ipdr.layer.index': `8:10:${'0'.repeat(64)}` },
      },
    ],
  })
  const { manifests } = await inspect({ ...files, 'manifests/latest': manifest })
  expect(manifests).toMatchObject([
    { layers: [{ lazy: { kind: 'none', because: expect.stringContaining('the manifest says') } }] },
  ])
})

test('of an index, what is an image is described, and of the rest is said what it is', async () => {
  const { files, manifest, manifestDigest } = testImage([TAR])
  const artifact = json({
    schemaVersion: 2,
    config: { mediaType: 'application/vnd.test', digest: digestOf(Buffer.from('{}')), size: 2 },
    layers: [],
  })
  const absent = digestOf(Buffer.from('absent'))
  const entry = (digest: string, size: number, architecture: string): object => ({
    mediaType: MEDIA_TYPES.ociManifest,
    digest,
    size,
    platform: { os: 'linux', architecture },
  })
  const index = json({
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociIndex,
    manifests: [
      entry(manifestDigest, manifest.length, 'amd64'),
      entry(digestOf(artifact), artifact.length, 'unknown'),
      entry(absent, 9, 'arm64'),
    ],
  })
  const found = await inspect(
    {
      ...files,
      'manifests/v2': index,
      [`blobs/${digestOf(artifact)}`]: artifact,
    },
    ':v2',
  )
  expect(found).toMatchObject({ mediaType: MEDIA_TYPES.ociIndex, tags: ['latest', 'v2'] })
  expect(found.manifests).toMatchObject([
    { kind: 'image', platform: 'linux/amd64', digest: manifestDigest },
    { kind: 'none', because: expect.stringContaining('is not a container image') },
    { kind: 'none', platform: 'linux/arm64', because: expect.stringContaining('no manifest') },
  ])
})

test('a config that is not the one of the manifest rejects with DATA_LOSS', async () => {
  const { files, configDigest, config } = testImage([TAR])
  const other = Buffer.from(config.toString().replace('amd64', 'arm64'))
  await expect(inspect({ ...files, [`blobs/${configDigest}`]: other })).rejects.toMatchObject({
    name: 'ImageError',
    code: 'DATA_LOSS',
  })
})

test('a directory that is no image rejects with NOT_FOUND, and what it is', async () => {
  await expect(inspect({ 'readme.md': TAR })).rejects.toMatchObject({
    code: 'NOT_FOUND',
    message: expect.stringContaining('a directory with readme.md'),
  })
})
