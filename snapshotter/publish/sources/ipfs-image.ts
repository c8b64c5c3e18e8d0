import type { BlockSource } from '../../block-source.ts'
import { orUndefined } from '../../dag/ipfs-image.ts'
import { openIpfsImage } from '../../dag/open-ipfs-image.ts'
import type { ImageReference } from '../../oci/reference.ts'
import type { ImageToPush } from '../image-to-push.ts'

/**
 * Opens an image on IPFS, in any layout that nodes read, to be written anew. Rejects as `openIpfsImage`, and with ImageError NOT_FOUND
 * if it has no such tag or digest.
 */
export async function openIpfsSource(
  { root, selector }: ImageReference,
  blocks: BlockSource,
  signal: AbortSignal,
): Promise<ImageToPush> {
  const request = { priority: 'background', signal } as const
  const image = await openIpfsImage(root, blocks, request)
  const { bytes: manifest } = await image.manifest(selector, request)
  return {
    manifest,
    async *blob(digest, signal) {
      const request = { priority: 'background', signal } as const
      const file = await orUndefined(image.blob(digest, request))
      if (file === undefined) {
        // Some layouts have the manifests of an index under their names only.
        yield (await image.manifest(digest, request)).bytes
        return
      }
      yield* file.stream({ start: 0, end: file.size }, request)
    },
  }
}
