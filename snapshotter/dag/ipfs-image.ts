import type { CID } from 'multiformats/cid'
import type { BlockRequest } from '../block-source.ts'
import { ImageError } from '../errors.ts'
import type { Digest } from '../oci/digest.ts'
import { MANIFEST_BYTES_MAX } from '../oci/manifest.ts'
import type { UnixfsFile } from './unixfs-file.ts'

/** Names quoted in the error for what is not there: enough to recognise what is. */
export const NAMES_SHOWN_MAX = 8

/** A manifest or index, as its bytes. */
export type FoundManifest = {
  readonly bytes: Uint8Array
  readonly digest: Digest
  readonly mediaType: string
}

/** An image under one CID, however its parts lie there: one class a layout, and open-ipfs-image.ts tells which it is. */
export interface IpfsImage {
  readonly root: CID

  /**
   * The manifest under a tag or digest. A digest is checked against the bytes; `latest`, which clients add when no tag is
   * written, also stands for the only tag there is. Rejects with ImageError NOT_FOUND, naming the tags there are, or DATA_LOSS.
   */
  manifest(reference: string, request: BlockRequest): Promise<FoundManifest>

  /** The config, layer or other blob of a digest. Its bytes are not checked against the digest here. Rejects with ImageError NOT_FOUND. */
  blob(digest: string, request: BlockRequest): Promise<UnixfsFile>

  /** CIDs of those of `digests` that the image has, without reading the blobs. */
  blobCids(digests: readonly string[], request: BlockRequest): Promise<ReadonlyMap<string, CID>>

  /** Tags of the image, sorted. */
  tags(request: BlockRequest): Promise<string[]>
}

/** All of a manifest's file, which `what` names. Rejects with ImageError RESOURCE_EXHAUSTED if no manifest is that large, and as `readRange`. */
export async function readManifestFile(
  file: UnixfsFile,
  what: string,
  request: BlockRequest,
): Promise<Uint8Array> {
  if (file.size <= MANIFEST_BYTES_MAX) {
    return file.readRange({ start: 0, end: file.size }, request)
  }
  throw new ImageError(
    'RESOURCE_EXHAUSTED',
    `${what} has ${file.size} bytes, a manifest may have ${MANIFEST_BYTES_MAX}`,
    { bytes: file.size, bytesMax: MANIFEST_BYTES_MAX },
  )
}

/** The refusal of a tag or digest that the image under `root` does not have. */
export function noManifest(root: CID, reference: string, tags: readonly string[]): ImageError {
  const shown = tags.slice(0, NAMES_SHOWN_MAX).join(', ')
  return new ImageError(
    'NOT_FOUND',
    `image ${root.toString()} has no manifest ${reference}; its tags are: ${shown || 'none'}`,
    { root: root.toString(), reference },
  )
}

/** The refusal of a digest that the image under `root` has no blob for. */
export function noBlob(root: CID, digest: string): ImageError {
  return new ImageError('NOT_FOUND', `image ${root.toString()} has no blob ${digest}`, {
    root: root.toString(),
    digest,
  })
}

/** ImageError NOT_FOUND as undefined. A block that nobody has is a BlockError, and stays a failure. */
export async function orUndefined<T>(found: Promise<T>): Promise<T | undefined> {
  try {
    return await found
  } catch (error) {
    if (error instanceof ImageError && error.code === 'NOT_FOUND') return undefined
    throw error
  }
}
