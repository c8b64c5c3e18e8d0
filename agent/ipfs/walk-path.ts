import { type ReadableStorage, walkPath as walkUnixfsPath } from 'ipfs-unixfs-exporter'
import type { CID } from 'multiformats/cid'
import { inlineBlock } from '../../snapshotter/oci/verify-block.ts'
import type { DagBlock } from './walk-dag.ts'

/** Most names of a path. As many as an image's are followed in (snapshotter/dag/unixfs-path.ts). */
const PATH_NAMES_MAX = 32

/** Most blocks on the way: 32 directories, each up to 8 shards deep. */
const PATH_BLOCKS_MAX = 256

/** Where a path leads, and the blocks that show it: directories and their shards, in the order of the way, each once. */
export type WalkedPath = { readonly end: CID; readonly way: readonly DagBlock[] }

/**
 * Follows names from the UnixFS directory `root`. Undefined if there is no such name, if a block on the way is not here, or if it is no UnixFS or
 * longer than anybody's path. Throws what `get` throws.
 */
export async function walkPath(
  root: CID,
  names: readonly string[],
  get: (cid: CID) => Promise<Uint8Array | undefined>,
): Promise<WalkedPath | undefined> {
  // The exporter splits at slashes, and a backslash in front of one stops it from doing so.
  if (names.length > PATH_NAMES_MAX || names.some((name) => name === '' || /[/\\]/.test(name))) {
    return undefined
  }
  const way = new Map<string, DagBlock>()
  let failure: { readonly error: unknown } | undefined
  const got = async (cid: CID): Promise<Uint8Array | undefined> => {
    try {
      return await get(cid)
    } catch (error) {
      failure = { error }
      throw error
    }
  }
  const seen: ReadableStorage = {
    async *get(cid) {
      const inline = inlineBlock(cid)
      const bytes = inline ?? (await got(cid))
      if (bytes === undefined || way.size >= PATH_BLOCKS_MAX) throw new Error('not on this way')
      if (inline === undefined) way.set(cid.toString(), { cid, bytes })
      yield bytes
    },
  }
  let end: { cid: CID; depth: number } | undefined
  try {
    for await (const { cid, roots } of walkUnixfsPath(
      [root.toString(), ...names].join('/'),
      seen,
    )) {
      end = { cid, depth: roots.length - 1 }
    }
  } catch {
    // The exporter has many words for what is no such path.
    if (failure !== undefined) throw failure.error
    return undefined
  }
  return end?.depth === names.length ? { end: end.cid, way: [...way.values()] } : undefined
}
