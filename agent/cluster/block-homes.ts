import type { CID } from 'multiformats/cid'
import type { BlockOrder, BlockProvider } from '../ipfs/block-provider.ts'
import type { KeptBlocks } from './kept-blocks.ts'
import { type RankedName, rankedName, rankHomes } from './rank-homes.ts'

/** Other agents asked for one block. 2: its home and, if that one is away, the node that is its home then. */
const ASKED_MAX = 2

type Node = RankedName & { readonly provider: BlockProvider }

/** Decides whom to ask for a block. Each has a home, a node of the cluster that everybody asks, so that it leaves the origin once. */
export class BlockHomes {
  #nodes: readonly Node[] = []
  readonly #kept: KeptBlocks

  /** Knows of no other node yet. */
  constructor(kept: KeptBlocks) {
    this.#kept = kept
  }

  /** `self` is what the others call this node, and `peers` are these by name; without `self` this node is a home to nothing. */
  follow(self: string | undefined, peers: ReadonlyMap<string, BlockProvider>): void {
    const own = self === undefined ? [] : [[self, this.#kept] as const]
    this.#nodes = [...peers, ...own].map(([name, provider]) => ({ ...rankedName(name), provider }))
  }

  /**
   * First the nodes ahead of this one in the block's order, then the origin. The others are asked when the origin is away; those that
   * failed lately or lied after them, and they are a home to nothing meanwhile.
   */
  orderFor(cid: CID): BlockOrder {
    const ranked = rankHomes(cid.multihash.digest, this.#nodes).map(({ provider }) => provider)
    const good = ranked.filter(({ health }) => health.standing === 0)
    const own = good.indexOf(this.#kept)
    const ahead = this.#kept.has(cid) ? 0 : own === -1 ? good.length : own
    const first = good.slice(0, Math.min(ahead, ASKED_MAX))
    const spare = ranked
      .filter((provider) => provider !== this.#kept && !first.includes(provider))
      .toSorted((a, b) => a.health.standing - b.health.standing)
      .slice(0, ASKED_MAX - first.length)
    return { first: [...first, this.#kept], spare }
  }
}
