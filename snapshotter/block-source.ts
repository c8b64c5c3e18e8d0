import type { CID } from 'multiformats/cid'

/** Who waits for a block: a page fault or a pull, a prefetch list, or nobody. Lower ones yield to higher ones. */
export type Priority = 'foreground' | 'prefetch' | 'background'

export type BlockRequest = {
  readonly priority: Priority
  readonly signal: AbortSignal
  /** Aborts when somebody in the foreground has come to wait for the same: it is foreground from then on. */
  readonly escalated?: AbortSignal
  /** Where a source may put the block, if whoever asks is going to give it back. */
  readonly memory?: BlockMemory | undefined
}

/** Memory for blocks that is used again. */
export interface BlockMemory {
  /** An array of so many bytes, of whatever content. */
  take(bytes: number): Uint8Array
  /** What was taken here, or a part of it, is no longer looked at by anybody. An array from elsewhere is left alone. */
  giveBack(array: Uint8Array): void
}

/** Where IPFS blocks come from. The agent implements it with gateways and Helia; tests with a Map. */
export interface BlockSource {
  /**
   * The bytes of one block, already verified against `cid`. The array belongs to the caller.
   * Rejects with BlockError: NOT_FOUND (no provider has it), UNAVAILABLE (providers failed),
   * DATA_LOSS (only wrong bytes were offered), DEADLINE_EXCEEDED or CANCELLED (`signal`).
   */
  get(cid: CID, request: BlockRequest): Promise<Uint8Array>

  /**
   * The blocks of the file to which these names lead from the directory `root`, those on the way included, verified, in one round trip where
   * there is somebody who can. In any other case none, or not all: none of them may be missed. Never throws.
   */
  along?(path: FilePath, request: BlockRequest): AsyncIterable<VerifiedBlock>
}

/** A file below a directory, of which no more than `bytesMax` bytes are wanted, those of its way included. */
export type FilePath = {
  readonly root: CID
  readonly names: readonly string[]
  readonly bytesMax: number
}

/** A block, and what it is by its CID. */
export type VerifiedBlock = { readonly cid: CID; readonly bytes: Uint8Array }
