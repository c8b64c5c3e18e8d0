import { expect, onTestFinished, test } from 'vitest'
import { resolveUnixfsPath } from '../../../snapshotter/dag/unixfs-path.ts'
import { MEDIA_TYPES } from '../../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { SIDE_INDEXES_DIRECTORY } from '../../../snapshotter/toc/side-index.ts'
import { failureOf } from '../../support/failure-of.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { LazyNode } from './lazy-node.ts'
import { publishImage } from './published-image.ts'

test('a config of 40 MB is refused after a tenth of it was fetched, whatever its manifest says', async () => {
  const blocks = new MemoryBlocks()
  const config = Buffer.alloc(40_000_000, ' ')
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociManifest,
      config: { mediaType: MEDIA_TYPES.ociConfig, digest: digestOf(config), size: config.length },
      layers: [],
    }),
  )
  const root = await blocks.addDirectory({
    'manifests/latest': manifest,
    // Each block is another one, so that what is fetched can be counted.
    [`blobs/${digestOf(config)}`]: config.map((_, at) => (at % 262_144 < 4 ? at >>> 18 : 32)),
  })
  const node = await LazyNode.open(blocks)
  onTestFinished(() => node[Symbol.asyncDispose]())
  const manifestDigest = digestOf(manifest)
  const failure = await failureOf(() =>
    node.serve({ root, manifest, manifestDigest, chainIds: [] }),
  )
  expect(failure).toMatchObject({ name: 'ImageError', code: 'RESOURCE_EXHAUSTED' })
  expect(new Set(blocks.asked).size).toBeLessThan(30)
})

test('the directory of indexes is asked for while the config is still on its way', async () => {
  const blocks = new MemoryBlocks()
  const layer = { blob: Buffer.from('layer'), diffId: digestOf(Buffer.from('tar')) }
  const sideIndex = Buffer.from('index')
  const image = await publishImage(blocks, [{ ...layer, sideIndex }])
  const { config } = JSON.parse(image.manifest.toString('utf8'))
  const configCid = [...blocks.blocks].find(([, block]) => digestOf(block) === config.digest)?.[0]
  const request = { priority: 'foreground', signal: AbortSignal.timeout(10_000) } as const
  const indexes = await resolveUnixfsPath(image.root, [SIDE_INDEXES_DIRECTORY], blocks, request)
  const isAsked = Promise.withResolvers<void>()
  let isConfigHeldBack = false
  const node = await LazyNode.open({
    async get(cid, asked) {
      if (cid.equals(indexes.cid)) isAsked.resolve()
      if (cid.toString() === configCid) {
        isConfigHeldBack = true
        await isAsked.promise
      }
      return blocks.get(cid, asked)
    },
  })
  onTestFinished(() => node[Symbol.asyncDispose]())
  await node.serve(image)
  expect(isConfigHeldBack).toBe(true)
})
