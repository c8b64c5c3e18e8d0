import { type Digest, digestOf } from './digest.ts'

/**
 * The chain ID of every layer of an image, lowest first, from its diff IDs: ChainID(L0) = DiffID(L0),
 * ChainID(L0|…|Ln) = sha256(ChainID(L0|…|Ln-1) + " " + DiffID(Ln)) (OCI image-spec, config.md, "Layer ChainID").
 */
export function layerChainIds(diffIds: readonly Digest[]): Digest[] {
  const chainIds: Digest[] = []
  for (const diffId of diffIds) {
    const below = chainIds.at(-1)
    chainIds.push(below === undefined ? diffId : digestOf(Buffer.from(`${below} ${diffId}`)))
  }
  return chainIds
}
