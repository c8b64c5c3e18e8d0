import type { BlockRequest } from '../block-source.ts'
import { verifyDigest } from '../oci/digest.ts'
import { IMAGE_CONFIG_BYTES_MAX, type ImageConfig, parseImageConfig } from '../oci/image-config.ts'
import type { ImageManifest } from '../oci/manifest.ts'
import type { IpfsImage } from './ipfs-image.ts'

/** A config as it is parsed, with its bytes for those who read more of it, and its name for their errors. */
export type ReadImageConfig = ImageConfig & { readonly bytes: Uint8Array; readonly what: string }

/**
 * The config that a manifest names, checked against its digest. Rejects with ImageError: RESOURCE_EXHAUSTED if no config is that
 * large, DATA_LOSS if it has another digest, INVALID_ARGUMENT if it is none; and as IpfsImage.blob.
 */
export async function readImageConfig(
  image: IpfsImage,
  { config: { digest } }: Pick<ImageManifest, 'config'>,
  request: BlockRequest,
): Promise<ReadImageConfig> {
  const what = `config ${digest} of ${image.root.toString()}`
  const file = await image.blob(digest, request)
  // One byte more than is accepted, so that a longer one is refused by its parser.
  const end = Math.min(file.size, IMAGE_CONFIG_BYTES_MAX + 1)
  const bytes = await file.readRange({ start: 0, end }, request)
  // What is not the config at all need not be one that can be read.
  if (file.size <= IMAGE_CONFIG_BYTES_MAX) verifyDigest(bytes, digest, what)
  return { ...parseImageConfig(bytes, what), bytes, what }
}
