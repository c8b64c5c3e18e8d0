import type { LayerBlob } from './blobs/layer-blob.ts'
import type { Digest } from './oci/digest.ts'

/** Blobs of the layers of this node as they were published: on IPFS, or in a registry. */
export interface PublishedBlobs {
  /**
   * How the blob with this digest is found, also after its layer is gone from here; asks nobody but this node. Undefined if no layer
   * here has it.
   */
  find(digest: Digest): Promise<{ readonly size: number; readonly bytes: Uint8Array } | undefined>
  /**
   * How the blob of a layer of the image with this name in a registry is found there; undefined if the name is of none, or if no
   * registry is ever asked.
   */
  inRegistry(
    blob: { readonly digest: Digest; readonly size: number },
    name: string,
  ): Uint8Array | undefined
  /** The blob that `bytes` of `find` or `inRegistry` lead to; asks nobody. Throws BlockError DATA_LOSS if they are damaged. */
  open(bytes: Uint8Array): LayerBlob
}
