import { expect, onTestFinished, test } from 'vitest'
import { MEDIA_TYPES } from '../../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { LazyNode } from './lazy-node.ts'

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
