import type { CID } from 'multiformats/cid'
import type { VerifiedBlock } from '../../snapshotter/block-source.ts'
import { CodedError } from '../../snapshotter/errors.ts'
import { inlineBlock } from '../../snapshotter/oci/verify-block.ts'
import { readDagLinks } from './dag-links.ts'

/** Blocks of one DAG. 4 Mi: 1 TiB in leaves of 256 KiB; their CIDs in memory are some 600 MB at worst. */
export const DAG_BLOCKS_MAX: number = 4 * 1024 * 1024

export type DagBlock = VerifiedBlock

/**
 * The blocks of the DAG under `root` in depth-first order, links from first to last, each once. CIDs that carry their own
 * bytes are followed and not yielded. `get` answers verified blocks. Throws what it throws; as `readDagLinks`; OUT_OF_RANGE past DAG_BLOCKS_MAX.
 */
export async function* walkDag(
  root: CID,
  get: (cid: CID) => Promise<Uint8Array>,
  signal: AbortSignal,
): AsyncGenerator<DagBlock, void, void> {
  const seen = new Set<string>()
  const stack = [root]
  for (let cid = stack.pop(); cid !== undefined; cid = stack.pop()) {
    signal.throwIfAborted()
    // With its codec: the same bytes can be a leaf here and a node there.
    const key = cid.toV1().toString()
    if (seen.has(key)) continue
    if (seen.size >= DAG_BLOCKS_MAX) {
      throw new CodedError(
        'OUT_OF_RANGE',
        `the DAG under ${root.toString()} has more than ${DAG_BLOCKS_MAX} blocks`,
        { root: root.toString() },
      )
    }
    seen.add(key)
    const inline = inlineBlock(cid)
    const bytes = inline ?? (await get(cid))
    const { links } = readDagLinks(cid, bytes)
    if (inline === undefined) yield { cid, bytes }
    for (const link of links.toReversed()) {
      if (!seen.has(link.cid.toV1().toString())) stack.push(link.cid)
    }
  }
}
