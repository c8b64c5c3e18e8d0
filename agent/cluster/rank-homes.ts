import { hash } from 'node:crypto'

/** A name, mixed beforehand, since every block is weighed against every one of them. */
export type RankedName = { readonly name: string; readonly seed: readonly [number, number] }

export function rankedName(name: string): RankedName {
  const digest = hash('sha256', name, 'buffer')
  return { name, seed: [digest.readUInt32BE(0), digest.readUInt32BE(4)] }
}

/**
 * Rendezvous hashing: the names in the order in which they are a home to what has this digest, the same on every node that knows the same
 * names. Blocks are spread evenly, and without one of the names all the others stay in their order.
 */
export function rankHomes<Named extends RankedName>(
  digest: Uint8Array,
  names: readonly Named[],
): Named[] {
  // As good as random, but for digests of less than 8 bytes, which name no block that is taken (verify-block.ts).
  const [high, low] = digest.length < 8 ? [0, 0] : wordsOf(digest)
  return names
    .map((named) => ({ named, weight: mixed(mixed(named.seed[0] ^ high) ^ named.seed[1] ^ low) }))
    .toSorted((a, b) => b.weight - a.weight || (a.named.name < b.named.name ? -1 : 1))
    .map(({ named }) => named)
}

function wordsOf(digest: Uint8Array): [number, number] {
  const view = new DataView(digest.buffer, digest.byteOffset)
  return [view.getUint32(0), view.getUint32(4)]
}

/** The last step of MurmurHash3: each bit of the word decides about half of the bits of the result. */
function mixed(word: number): number {
  let mixing = word
  mixing = Math.imul(mixing ^ (mixing >>> 16), 0x85ebca6b)
  mixing = Math.imul(mixing ^ (mixing >>> 13), 0xc2b2ae35)
  return (mixing ^ (mixing >>> 16)) >>> 0
}
