import { decode } from '@ipld/dag-pb'
import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { readBlock } from './read-block.ts'
import { DAG_PB, decodeUnixfsNode } from './unixfs-node.ts'

/** A name in a directory: where it leads, and how many bytes of blocks its link says are there. */
export type DirectoryLink = { readonly cid: CID; readonly size: number }

/** The names of a directory of one block; undefined for anything else, a directory in shards among it. Rejects as BlockSource.get. */
export async function readPlainDirectory(
  cid: CID,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<Map<string, DirectoryLink> | undefined> {
  if (cid.code !== DAG_PB) return undefined
  const block = await readBlock(blocks, cid, request)
  if (decodeUnixfsNode(cid, block).kind !== 'directory') return undefined
  const { Links } = decode(block)
  return new Map(Links.map(({ Name = '', Hash, Tsize = 0 }) => [Name, { cid: Hash, size: Tsize }]))
}
