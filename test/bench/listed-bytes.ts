import { CID } from 'multiformats/cid'
import { repositoryBlocks } from '../../agent/cli/repository-blocks.ts'
import { BlockRepository } from '../../agent/ipfs/repository.ts'
import { unitAt } from '../../snapshotter/blobs/shared-units.ts'
import { openIpfsImage } from '../../snapshotter/dag/open-ipfs-image.ts'
import { parseManifest } from '../../snapshotter/oci/manifest.ts'
import { DEFAULT_TAG } from '../../snapshotter/oci/reference.ts'
import { readPublishedList } from '../../snapshotter/optimize.ts'
import { readLayerIndex } from '../../snapshotter/toc/read-layer-toc.ts'

/**
 * Compressed bytes of what the prefetch list of an image names. Where a leaf holds other bytes as well, its share: so of an image
 * that was pushed with its list, whose leaves hold little else, it is what has to be fetched at least.
 */
export async function listedBytes(reference: string, repository: string): Promise<number> {
  await using opened = await BlockRepository.open(repository)
  const blocks = repositoryBlocks(opened)
  const { signal } = new AbortController()
  const request = { priority: 'foreground', signal } as const
  const root = CID.parse(reference.slice(reference.lastIndexOf('/') + 1))
  const image = await openIpfsImage(root, blocks, request)
  const { bytes, digest } = await image.manifest(DEFAULT_TAG, request)
  const manifest = parseManifest(bytes, reference)
  const list = await readPublishedList(root, digest, blocks, request)
  if (manifest.kind === 'index' || list === undefined) throw new Error(`${reference} has no list`)
  let listed = 0
  for (const [layer, { digest, annotations = {} }] of manifest.layers.entries()) {
    const blob = await image.blob(digest, request)
    const read = (range: { start: number; end: number }) => blob.readRange(range, request)
    const map = (await readLayerIndex(annotations, read, blob.size, signal))?.map
    if (map === undefined) throw new Error(`layer ${digest} of ${reference} has no index`)
    for (const { layerOffset, length } of list.ranges.filter((range) => range.layer === layer)) {
      const end = layerOffset + length
      for (let at = layerOffset; at < end; ) {
        const unit = unitAt(map, at)
        const [from, to] = [map.starts[unit] ?? 0, map.starts[unit + 1] ?? 0]
        const part = map.blobRange(unit)
        listed += ((Math.min(to, end) - at) / (to - from)) * (part.end - part.start)
        at = to
      }
    }
  }
  return listed
}
