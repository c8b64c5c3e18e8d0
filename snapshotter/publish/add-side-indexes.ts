import { decode } from '@ipld/dag-pb'
import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { readBlock } from '../dag/read-block.ts'
import { DAG_PB, decodeUnixfsNode } from '../dag/unixfs-node.ts'
import { ImageError } from '../errors.ts'
import type { Digest } from '../oci/digest.ts'
import { SIDE_INDEXES_DIRECTORY } from '../toc/side-index.ts'
import { type BlockSink, type ImportedNode, importBlob, writeDirectory } from './import-image.ts'

/**
 * Writes an image directory like the one at `root`, with these side indexes beside what it has: its other names lead to the same
 * CIDs, and none of their blocks is read or written. Resolves to the new root. Rejects with ImageError UNIMPLEMENTED for a
 * directory in shards, and as BlockSource.get and the sink.
 */
export async function addSideIndexes(
  root: CID,
  indexes: ReadonlyMap<Digest, Uint8Array>,
  { blocks, sink }: { readonly blocks: BlockSource; readonly sink: BlockSink },
  request: BlockRequest,
): Promise<CID> {
  const image = await readDirectory(root, blocks, request)
  const before = image.get(SIDE_INDEXES_DIRECTORY)
  const files = before === undefined ? new Map() : await readDirectory(before.cid, blocks, request)
  for (const [digest, bytes] of indexes) {
    files.set(digest, await importBlob(once(bytes), 'kubo', sink, request.signal))
  }
  image.set(SIDE_INDEXES_DIRECTORY, await writeDirectory(files, sink, request.signal))
  return (await writeDirectory(image, sink, request.signal)).cid
}

/** The names of a directory, with the sizes that its links say. */
async function readDirectory(
  cid: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<Map<string, ImportedNode>> {
  const block = await readBlock(blocks, cid, request)
  if (cid.code !== DAG_PB || decodeUnixfsNode(cid, block).kind !== 'directory') {
    throw new ImageError(
      'UNIMPLEMENTED',
      `${cid.toString()} is not a directory of one block: push the image again with ipdr push`,
      { cid: cid.toString() },
    )
  }
  const { Links } = decode(block)
  return new Map(Links.map(({ Name = '', Hash, Tsize = 0 }) => [Name, { cid: Hash, size: Tsize }]))
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array, void> {
  yield bytes
}
