/**
 * The agents of other nodes of the same cluster, which are what this one is: what they have found out about layers need not be found
 * out again. Whoever implements this answers for nobody else.
 */
export interface ClusterPeers {
  /**
   * The side index (toc/side-index.ts) of the gzip layer with this blob, of a peer that has read and checked it whole; undefined if
   * none has, or none answers in time. Rejects only when `signal` aborts.
   */
  sideIndex(blobCid: string, signal: AbortSignal): Promise<SharedFind | undefined>

  /** The prefetch list (prefetch/prefetch-list.ts) that a peer learned of the image with this chain ID; as `sideIndex`. */
  prefetchList(layerChainId: string, signal: AbortSignal): Promise<SharedFind | undefined>
}

/** What a peer answered, and which. */
export type SharedFind = { readonly bytes: Uint8Array; readonly peer: string }
