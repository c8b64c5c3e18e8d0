import type { Catalog } from './catalog.ts'

/** What `store.pinned` names: the root CIDs of images on IPFS, and the names of others. */
export type PinnedImages = ReadonlySet<string>

/** The layers of pinned images that this node knows by now. */
export function pinnedLayers(catalog: Catalog, pinned: PinnedImages): ReadonlySet<number> {
  if (pinned.size === 0) return new Set()
  const blobs = catalog
    .images()
    .filter(({ rootCid, reference }) => pinned.has(rootCid) || pinned.has(reference ?? ''))
    .flatMap(({ layers }) => layers.map(({ blobCid }) => blobCid))
  const layers = new Set<number>()
  for (const blobCid of new Set(blobs)) {
    const record = catalog.layerByBlob(blobCid)
    if (record !== undefined) layers.add(record.id)
  }
  return layers
}
