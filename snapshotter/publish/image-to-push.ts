import type { Digest } from '../oci/digest.ts'

/** An image that `pushImage` can read: an OCI layout, a docker-archive, a root filesystem, an image in containerd. */
export interface ImageToPush {
  /** The manifest or index that the image's name leads to, to the byte. */
  readonly manifest: Uint8Array
  /**
   * The bytes of a manifest, config or layer. `pushImage` checks them against the digest.
   * Rejects with ImageError NOT_FOUND if the source lacks it, as containerd lacks what was not pulled.
   */
  blob(digest: Digest, signal: AbortSignal): AsyncIterable<Uint8Array>
}
