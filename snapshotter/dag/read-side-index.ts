import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { LayerError } from '../errors.ts'
import { SIDE_INDEX_BYTES_MAX } from '../toc/side-index.ts'
import { UnixfsFile } from './unixfs-file.ts'

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
