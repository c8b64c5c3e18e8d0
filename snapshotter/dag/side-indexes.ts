import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { LayerError } from '../errors.ts'
import { SIDE_INDEX_BYTES_MAX, SIDE_INDEXES_DIRECTORY } from '../toc/side-index.ts'
import { orUndefined } from './ipfs-image.ts'
import { UnixfsFile } from './unixfs-file.ts'
import { listUnixfsDirectory, resolveUnixfsPath } from './unixfs-path.ts'

/**
 * The side indexes beside the image under `root`, whatever its layout, by the digest of the layer's blob (toc/side-index.ts); none
 * of an image that nobody indexed. Nothing of them is checked here. Rejects as `resolveUnixfsPath`.
 */
export async function listSideIndexes(
  root: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<ReadonlyMap<string, CID>> {
  const path = [SIDE_INDEXES_DIRECTORY]
  const directory = await orUndefined(resolveUnixfsPath(root, path, blocks, request))
  if (directory?.kind !== 'directory') return new Map()
  const found = await listUnixfsDirectory(directory.cid, blocks, request)
  return new Map(found.map(({ name, cid }) => [name, cid]))
}

/** The bytes of a layer's side index beside the image under `root`; undefined if there is none. Rejects as `readSideIndex`. */
export async function findSideIndex(
  root: CID,
  layer: { readonly digest: string; readonly size: number },
  blocks: BlockSource,
  request: BlockRequest,
): Promise<Uint8Array | undefined> {
  const cid = (await listSideIndexes(root, blocks, request)).get(layer.digest)
  return cid && readSideIndex(cid, layer.size, blocks, request)
}

/**
 * The bytes of a side index; what they say is not looked at. Rejects with LayerError RESOURCE_EXHAUSTED if reading it costs more
 * than reading the layer, or as UnixfsFile.
 */
export async function readSideIndex(
  cid: CID,
  blobSize: number,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<Uint8Array> {
  const file = await UnixfsFile.open(cid, blocks, request)
  // A layer of a few files is smaller than the names in it: 64 KiB are one answer of a peer.
  const bytesMax = Math.min(SIDE_INDEX_BYTES_MAX, Math.max(blobSize, 64 * 1024))
  if (file.size <= bytesMax) return file.readRange({ start: 0, end: file.size }, request)
  throw new LayerError(
    'RESOURCE_EXHAUSTED',
    `the side index ${cid.toString()} has ${file.size} bytes, the limit for a layer of ${blobSize} bytes is ${bytesMax}`,
    { cid: cid.toString() },
  )
}
