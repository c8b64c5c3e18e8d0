import type { CID } from 'multiformats/cid'
import type { BlockRequest } from '../block-source.ts'
import type { ByteRange } from '../byte-range.ts'

/**
 * The blob of a layer as others keep it, read part by part; every byte of it is verified before it is handed out. A UnixFS file
 * on IPFS is one as it is.
 */
export interface LayerBlob {
  readonly cid: CID
  readonly size: number
  /** Where the parts that are fetched at once start, ascending, with `size` as last element. */
  readonly leafStarts: Float64Array
  /** Bytes `range`; the array belongs to the caller. Throws RangeError if it is not in the blob; rejects with BlockError. */
  readRange(range: ByteRange, request: BlockRequest): Promise<Uint8Array>
  /** Bytes `range` in order, fetched ahead of the reader. Fails as `readRange`. */
  stream(range: ByteRange, request: BlockRequest): AsyncIterable<Uint8Array>
  /** The block that is exactly bytes `range`, as they are read; undefined if none is, or if it must not be used for others. */
  leafOf(range: ByteRange): CID | undefined
  /** What finds the blob again after a restart without asking anybody. */
  toBytes(): Uint8Array
}
