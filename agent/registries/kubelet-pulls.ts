import type { AuthConfig__Output } from '../../proto/types/runtime/v1/AuthConfig.ts'
import type { PullImageRequest__Output } from '../../proto/types/runtime/v1/PullImageRequest.ts'
import {
  formatRegistryReference,
  parseRegistryReference,
  type RegistryPlace,
  type RegistryReference,
} from '../../snapshotter/oci/registry-reference.ts'
import { basicLogin, registryKey } from './docker-auths.ts'
import type { FindLogins, LoginRequest } from './find-logins.ts'
import { RegistryLogin } from './registry-login.ts'

/** What pulls without a pod are remembered under, like those of crictl: no namespace is called so (RFC 1123 labels). */
const NO_POD = '(no pod)'

/** Credentials kept, by namespace and repository. 10,000: ten images in each namespace of a thousand. */
const KEPT_MAX = 10_000

/** Pulls under way. 1,000: the kubelet begins five a second. */
const UNDERWAY_MAX = 1_000

/** Longest namespace, in characters (RFC 1123 label). */
const NAMESPACE_CHARS_MAX = 63

type Underway = { readonly reference: string; readonly namespace: string }

/** A pull that was begun: dispose of it when it has ended. */
export type BegunPull = Disposable & {
  /** containerd has the image: its credentials are good, and kept. */
  succeeded(): void
}

/**
 * What the kubelet gave containerd to pull with, in memory alone: a credential is used for images that pods of its own namespace
 * pulled, and for its own repository. One that failed is not kept; a later one takes the place of an earlier one.
 */
export class KubeletPulls implements FindLogins {
  readonly #underway = new Set<Underway>()
  /** By namespace and repository, the one used longest ago first. */
  readonly #kept = new Map<string, RegistryLogin>()

  /** Remembers a pull while it is under way. Undefined if it names no image in a registry. */
  begin({ image, auth, sandboxConfig }: PullImageRequest__Output): BegunPull | undefined {
    const reference = parsed(image?.image ?? '')
    if (reference === undefined || this.#underway.size >= UNDERWAY_MAX) return undefined
    const namespace = sandboxConfig?.metadata?.namespace || NO_POD
    if (namespace.length > NAMESPACE_CHARS_MAX) return undefined
    const login = auth === null ? undefined : loginOf(auth, reference, namespace)
    const key = keyOf(namespace, reference)
    const before = this.#kept.get(key)
    const pull = { reference: formatRegistryReference(reference), namespace }
    this.#underway.add(pull)
    // From now on, since the snapshotter is asked before the pull has ended.
    if (login !== undefined) this.#keep(key, login)
    let isGood = false
    return {
      succeeded: () => {
        isGood = true
      },
      [Symbol.dispose]: () => {
        this.#underway.delete(pull)
        if (isGood || login === undefined || this.#kept.get(key) !== login) return
        if (before === undefined) this.#kept.delete(key)
        else this.#keep(key, before)
      },
    }
  }

  /** Namespaces of pods for which the image is being pulled. */
  namespacesPulling(name: string): readonly string[] {
    const reference = parsed(name)
    if (reference === undefined) return []
    const wanted = formatRegistryReference(reference)
    const pulls = [...this.#underway].filter(({ reference }) => reference === wanted)
    return [...new Set(pulls.map(({ namespace }) => namespace))].toSorted()
  }

  async loginsFor(
    place: RegistryPlace,
    { namespaces }: Pick<LoginRequest, 'namespaces'>,
  ): Promise<RegistryLogin[]> {
    return namespaces.flatMap((namespace) => this.#kept.get(keyOf(namespace, place)) ?? [])
  }

  #keep(key: string, login: RegistryLogin): void {
    this.#kept.delete(key)
    this.#kept.set(key, login)
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= KEPT_MAX) break
      this.#kept.delete(oldest)
    }
  }
}

function keyOf(namespace: string, { host, repository }: RegistryPlace): string {
  return JSON.stringify([namespace, host, repository])
}

function parsed(name: string): RegistryReference | undefined {
  try {
    return parseRegistryReference(name)
  } catch {
    return undefined
  }
}

/** As containerd reads it (ParseAuth of its CRI plugin): for another server than the image's it counts for nothing. */
function loginOf(
  auth: AuthConfig__Output,
  { host, repository }: RegistryPlace,
  namespace: string,
): RegistryLogin | undefined {
  const { username, password, auth: encoded, serverAddress, identityToken, registryToken } = auth
  if (serverAddress !== '' && registryKey(serverAddress).split('/')[0] !== host) return undefined
  const origin = `the kubelet, for pods of namespace ${namespace} (${host}/${repository})`
  if (username !== '') return RegistryLogin.password(origin, username, password)
  if (identityToken !== '') return RegistryLogin.identityToken(origin, identityToken)
  if (encoded !== '') return basicLogin(encoded, origin)
  return registryToken === '' ? undefined : RegistryLogin.registryToken(origin, registryToken)
}
