import type { IpfsImage } from '../dag/ipfs-image.ts'
import { ImageError } from '../errors.ts'
import type { Digest } from '../oci/digest.ts'
import { IMAGE_HOST } from '../oci/reference.ts'
import type { ImageToTrust } from './trust-policies.ts'

/** An image on IPFS, of which one manifest is about to be used, with its signatures beside it. */
export function imageToTrust(image: IpfsImage, manifestDigest: Digest): ImageToTrust {
  const root = image.root.toV1().toString()
  const name = `${IMAGE_HOST}/${root}`
  return {
    name,
    root,
    manifestDigest,
    place: {
      name,
      manifest: (reference, request) => image.manifest(reference, request),
      tags: (request) => image.tags(request),
      async blobBytes(digest, bytesMax, request) {
        const file = await image.blob(digest, request)
        if (file.size <= bytesMax) return file.readRange({ start: 0, end: file.size }, request)
        throw new ImageError(
          'RESOURCE_EXHAUSTED',
          `blob ${digest} of ${name} has ${file.size} bytes, ${bytesMax} are read`,
        )
      },
    },
  }
}
