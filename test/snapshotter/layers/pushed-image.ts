import { openIpfsImage } from '../../../snapshotter/dag/open-ipfs-image.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { layerChainIds } from '../../../snapshotter/oci/layer-chain-id.ts'
import { pushImage } from '../../../snapshotter/publish/push-image.ts'
import type { MemoryBlocks } from '../../support/memory-blocks.ts'
import { testImage } from '../../support/test-image.ts'
import type { PublishedImage } from './published-image.ts'

const { signal } = new AbortController()

/** Publishes an image of these tars, bottom first, exactly as `ipdr push` does. */
export async function pushTars(
  blocks: MemoryBlocks,
  tars: readonly Uint8Array[],
): Promise<PublishedImage> {
  const diffIds = tars.map((tar) => digestOf(tar))
  const { manifest: source, config, configDigest, layers } = testImage(tars, diffIds)
  const blobs = new Map([{ digest: configDigest, bytes: config }, ...layers].map(byDigest))
  const image = {
    manifest: source,
    async *blob(digest: string) {
      yield blobs.get(digest) ?? new Uint8Array()
    },
  }
  const sink = {
    put: (cid: { toString(): string }, block: Uint8Array) => {
      blocks.blocks.set(cid.toString(), block)
      return Promise.resolve()
    },
  }
  const { root, digest } = await pushImage(image, sink, { signal })
  const published = await openIpfsImage(root, blocks, { priority: 'foreground', signal })
  const { bytes } = await published.manifest(digest, { priority: 'foreground', signal })
  return {
    root,
    manifest: Buffer.from(bytes),
    manifestDigest: digest,
    chainIds: layerChainIds(diffIds).map(String),
  }
}

function byDigest({
  digest,
  bytes,
}: {
  digest: string
  bytes: Uint8Array
}): readonly [string, Uint8Array] {
  return [digest, bytes]
}
