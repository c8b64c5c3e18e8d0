import { decode } from '@ipld/dag-pb'
import { UnixFS } from 'ipfs-unixfs'
import type { CID } from 'multiformats/cid'
import { CodedError } from '../../snapshotter/errors.ts'

const RAW = 0x55
const DAG_PB = 0x70

/** What a block leads to. */
export type DagLinks = {
  /** Bytes of file content in the block itself. */
  readonly dataBytes: number
  readonly links: readonly DagLink[]
}
export type DagLink = {
  readonly cid: CID
  /** Bytes of file content under the link; 0 in directories. */
  readonly fileBytes: number
  /** Part of the same file or directory, and not a file or directory of its own. */
  readonly isInner: boolean
}

/** Whether a DAG with such a root can be walked: only UnixFS can, and only UnixFS holds images. */
export function isUnixfsCodec({ code }: CID): boolean {
  return code === RAW || code === DAG_PB
}

/** The links of a block that has been verified. Throws CodedError DATA_LOSS if it is not UnixFS, UNIMPLEMENTED for another codec. */
export function readDagLinks(cid: CID, block: Uint8Array): DagLinks {
  if (cid.code === RAW) return { dataBytes: block.length, links: [] }
  if (cid.code !== DAG_PB) {
    throw new CodedError(
      'UNIMPLEMENTED',
      `${cid.toString()} has codec 0x${cid.code.toString(16)}; only UnixFS (raw, dag-pb) is walked`,
      { cid: cid.toString() },
    )
  }
  try {
    const { Data, Links } = decode(block)
    const unixfs = UnixFS.unmarshal(Data ?? new Uint8Array())
    const isShard = unixfs.type === 'hamt-sharded-directory'
    // A link of a shard is named by its slot in hex; what is in it, and not another shard, by more after that.
    const slotDigits = ((unixfs.fanout ?? 256n) - 1n).toString(16).length
    const links = Links.map(({ Hash, Name }, index) => ({
      cid: Hash,
      fileBytes: Number(unixfs.blockSizes[index] ?? 0n),
      isInner: isShard ? Name?.length === slotDigits : unixfs.type !== 'directory',
    }))
    return { dataBytes: isShard ? 0 : (unixfs.data?.length ?? 0), links }
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new CodedError(
      'DATA_LOSS',
      `block ${cid.toString()} is not UnixFS: ${reason}`,
      { cid: cid.toString() },
      cause,
    )
  }
}
