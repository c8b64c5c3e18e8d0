import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { ImageError } from '../errors.ts'
import { DescriptorImage } from './descriptor-image.ts'
import { IpdrImage } from './ipdr-image.ts'
import { type IpfsImage, NAMES_SHOWN_MAX } from './ipfs-image.ts'
import { OciLayoutImage } from './oci-layout-image.ts'
import { UnixfsFile } from './unixfs-file.ts'
import { listUnixfsDirectory, resolveUnixfsPath } from './unixfs-path.ts'

/**
 * The image under `root`, in whichever layout it lies there. Rejects with ImageError NOT_FOUND, which says what is there instead and
 * what is read; INVALID_ARGUMENT if it is one of the layouts but malformed; and as `resolveUnixfsPath`.
 */
export async function openIpfsImage(
  root: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<IpfsImage> {
  const { kind } = await resolveUnixfsPath(root, [], blocks, request)
  let image: IpfsImage | undefined
  if (kind === 'file') image = await DescriptorImage.open(root, blocks, request)
  if (kind === 'directory') {
    image =
      (await IpdrImage.open(root, blocks, request)) ??
      (await OciLayoutImage.open(root, blocks, request))
  }
  if (image !== undefined) return image
  throw new ImageError(
    'NOT_FOUND',
    `${root.toString()} is not an image: it is ${await describe(root, kind, blocks, request)}; an image is a directory with manifests/<tag> and blobs/<digest> in it, as ipdr push writes, an OCI layout (oci-layout, index.json, blobs/), or a file with an OCI descriptor that has ipfs:// urls, as nerdctl writes`,
    { root: root.toString() },
  )
}

async function describe(
  root: CID,
  kind: 'file' | 'directory' | 'symlink',
  blocks: BlockSource,
  request: BlockRequest,
): Promise<string> {
  if (kind === 'symlink') return 'a symlink'
  if (kind === 'file') {
    const { size } = await UnixfsFile.open(root, blocks, request)
    return `a file of ${size} bytes`
  }
  const names = (await listUnixfsDirectory(root, blocks, request)).map(({ name }) => name)
  if (names.length === 0) return 'an empty directory'
  const more = names.length > NAMES_SHOWN_MAX ? ` and ${names.length - NAMES_SHOWN_MAX} more` : ''
  return `a directory with ${names.slice(0, NAMES_SHOWN_MAX).join(', ')}${more}`
}
