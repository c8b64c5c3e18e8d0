import type { BlockRequest } from './block-source.ts'
import type { ByteRange } from './byte-range.ts'
import type { Digest } from './oci/digest.ts'
import type { RegistryPlace } from './oci/registry-reference.ts'

/** A repository, and for whom it is read. */
export type RepositoryScope = RegistryPlace & {
  /** Kubernetes namespaces whose pods pulled the image; none: only what is meant for the whole node is shown to the registry. */
  readonly namespaces: readonly string[]
}

/** Images in registries. The agent implements it with OCI's distribution protocol and the credentials that it has. */
export interface ImageRegistries {
  /**
   * The namespaces whose pods have the image with this name pulled now or had it pulled a moment ago, as far as that is known.
   */
  namespacesPulling(reference: string): readonly string[]
  /**
   * A manifest or index by tag or digest, checked against a digest. Rejects with RegistryError: NOT_FOUND, PERMISSION_DENIED
   * (no credentials that the registry takes), UNAVAILABLE, RESOURCE_EXHAUSTED; with ImageError DATA_LOSS if it is another one.
   */
  manifest(
    scope: RepositoryScope,
    selector: string,
    signal: AbortSignal,
  ): Promise<{ readonly bytes: Uint8Array; readonly digest: Digest }>
  /** Tags of the repository, as many as the registry names at once. Rejects as `manifest`. */
  tags(scope: RepositoryScope, signal: AbortSignal): Promise<readonly string[]>
  /** A blob that is small, whole and checked. Rejects as `manifest`; RESOURCE_EXHAUSTED if it has more than `bytesMax`. */
  smallBlob(
    scope: RepositoryScope,
    digest: Digest,
    bytesMax: number,
    signal: AbortSignal,
  ): Promise<Uint8Array>
  /**
   * Bytes `range` of a blob from the first of the repositories that gives them: as many as asked for, and not checked, since a
   * digest is of the whole. Rejects as `manifest`, with DATA_LOSS if the blob there has another size.
   */
  readBlob(
    scopes: readonly RepositoryScope[],
    blob: { readonly digest: Digest; readonly size: number },
    range: ByteRange,
    request: BlockRequest,
  ): Promise<Uint8Array>
}
