import type { Mount } from './snapshots/mounts.ts'

/** A layer of an image that the node has. */
export type RememberedLayer = {
  /** Of its blob. */
  readonly digest: string
  readonly diffId: string
  readonly layerChainId: string
}

/** An image that the node has, as whoever manages its images remembers it. */
export type RememberedImage = {
  /** As containerd names it: `ipdr.internal/<cid>:latest`, `docker.io/library/debian:12`. */
  readonly reference: string
  readonly manifestDigest: string
  /** Bottom first. */
  readonly layers: readonly RememberedLayer[]
  /**
   * Unpacks a layer, of which it has the blob, onto mounts of the layers below it. Rejects with SnapshotError if it has not, or if
   * it is another tar than the image says.
   */
  unpack(layer: RememberedLayer, mounts: readonly Mount[], signal: AbortSignal): Promise<void>
}

/** Knows the node's images where our own memory of them was lost: containerd. */
export interface ImagesOfNode {
  /** The images with the layer of this chain ID. Rejects if nobody can be asked. */
  imagesWith(layerChainId: string, signal: AbortSignal): Promise<readonly RememberedImage[]>
}
