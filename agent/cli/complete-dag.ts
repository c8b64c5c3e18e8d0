import type { CID } from 'multiformats/cid'
import type { BlockSource } from '../../snapshotter/block-source.ts'
import { isUnixfsCodec, readDagLinks } from '../ipfs/dag-links.ts'
import type { BlockRepository } from '../ipfs/repository.ts'

/** Blocks looked at side by side. 16 of 2 MiB are 32 MiB at worst; of 256 KiB, the usual, 4 MiB. */
const BLOCKS_AT_ONCE = 16

/** What was not in the repository, and is there now. */
export type FetchedBlocks = { readonly blocks: number; readonly bytes: number }

/**
 * Sees to it that the repository has every block under `root`; what it lacks is fetched from `source`. Each is checked as it
 * is put. Rejects as BlockSource.get; what was fetched by then is kept.
 */
export async function completeDag(
  root: CID,
  repository: BlockRepository,
  {
    source,
    signal,
    onFetched,
  }: {
    readonly source: BlockSource
    readonly signal: AbortSignal
    readonly onFetched: (fetched: FetchedBlocks) => void
  },
): Promise<FetchedBlocks> {
  const seen = new Set<string>()
  let fetched: FetchedBlocks = { blocks: 0, bytes: 0 }
  const complete = async (cid: CID): Promise<CID[]> => {
    // A leaf that is here need not be read.
    const isLeaf = !isUnixfsCodec(cid) || cid.code === RAW
    if (isLeaf && (await repository.has(cid))) return []
    let block = await repository.get(cid)
    if (block === undefined) {
      block = await source.get(cid, { priority: 'foreground', signal })
      await repository.put(cid, block)
      fetched = { blocks: fetched.blocks + 1, bytes: fetched.bytes + block.length }
      onFetched(fetched)
    }
    return isLeaf ? [] : readDagLinks(cid, block).links.map((link) => link.cid)
  }
  let waiting = [root]
  while (waiting.length > 0) {
    signal.throwIfAborted()
    const batch = waiting.slice(0, BLOCKS_AT_ONCE)
    const links = await Promise.all(batch.map(complete))
    const fresh = links.flat().filter((cid) => {
      const key = cid.toV1().toString()
      return !seen.has(key) && seen.add(key)
    })
    // What was found last goes first, so that few wait at a time.
    waiting = [...fresh, ...waiting.slice(BLOCKS_AT_ONCE)]
  }
  return fetched
}

/** Multicodec's raw: a leaf. */
const RAW = 0x55
