import type { RegistryPlace } from '../../snapshotter/oci/registry-reference.ts'
import type { RegistryLogin } from './registry-login.ts'

export type LoginRequest = {
  /** Kubernetes namespaces whose pods pulled the image that is read; what others gave is not for it. */
  readonly namespaces: readonly string[]
  /** What was known did not let us in: ask again where that may help. */
  readonly fresh: boolean
  readonly signal: AbortSignal
}

/** Where credentials come from. */
export interface FindLogins {
  /** Those that may be used for the repository, in the order in which to try them. Rejects only when `signal` aborts. */
  loginsFor(place: RegistryPlace, request: LoginRequest): Promise<readonly RegistryLogin[]>
}
