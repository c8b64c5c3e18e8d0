import { setTimeout } from 'node:timers/promises'
import { z } from 'zod'
import { CodedError, RegistryError } from '../../snapshotter/errors.ts'
import type { RegistryPlace } from '../../snapshotter/oci/registry-reference.ts'
import { unlessAborted } from '../../snapshotter/unless-aborted.ts'
import { AUTHS_BYTES_MAX, DockerAuths } from './docker-auths.ts'
import type { FindLogins, LoginRequest } from './find-logins.ts'
import type { RegistryLogin } from './registry-login.ts'

/** The two types of secrets that pods name to pull with (core/v1, SecretTypeDockerConfigJson and SecretTypeDockercfg). */
export const PULL_SECRET_TYPES = [
  'kubernetes.io/dockerconfigjson',
  'kubernetes.io/dockercfg',
] as const

/** Secrets kept. 10,000: ten in each namespace of a thousand; of some hundred bytes each. */
const SECRETS_MAX = 10_000

/** How long the first reads wait for the first list, in ms. 5 s: a list of ten thousand secrets. */
const FIRST_LIST_MS = 5_000

/** A secret as Kubernetes' API gives it, as far as we look into it; values are in Base64. */
const secretSchema = z.object({
  metadata: z.object({ namespace: z.string().min(1).max(63), name: z.string().min(1).max(253) }),
  type: z.string().nullish(),
  data: z.record(z.string(), z.string()).nullish(),
})

type KubeSecret = z.infer<typeof secretSchema>

type Known = { readonly name: string; readonly auths: DockerAuths }

/** The pull secrets of a cluster, as far as they are known: each is used for images that pods of its namespace pulled. */
export class PullSecrets implements FindLogins {
  readonly #onProblem: (sentence: string) => void
  /**
   * By namespace, then by name and type: a secret that was made anew with the other type is told of by two watches, and the new one
   * may be told before the end of the old.
   */
  readonly #secrets = new Map<string, Map<string, Known>>()
  readonly #listed = Promise.withResolvers<void>()
  #firstList: Promise<void> | undefined
  #count = 0

  /** `onProblem` is told of secrets that cannot be used, never what is in them. */
  constructor({ onProblem }: { readonly onProblem: (sentence: string) => void }) {
    this.#onProblem = onProblem
  }

  /** A secret that is new, or was changed. */
  put(object: unknown): void {
    this.remove(object)
    const { success, data: secret } = secretSchema.safeParse(object)
    if (!success) {
      this.#onProblem(`${nameOf(object)} is not used: it is not as Kubernetes has secrets`)
      return
    }
    const { namespace, name } = secret.metadata
    const origin = originOf(namespace, name)
    if (this.#count >= SECRETS_MAX) {
      this.#onProblem(`${origin} is not used: ${SECRETS_MAX} others are known already`)
      return
    }
    try {
      const auths = authsOf(secret, origin)
      if (auths === undefined) return
      const inNamespace = this.#secrets.get(namespace) ?? new Map<string, Known>()
      this.#secrets.set(namespace, inNamespace.set(keyOf(secret), { name, auths }))
      this.#count += 1
    } catch (error) {
      if (!(error instanceof CodedError)) throw error
      this.#onProblem(error.message)
    }
  }

  remove(object: unknown): void {
    const { data: named } = secretSchema.pick({ metadata: true, type: true }).safeParse(object)
    if (named === undefined) return
    const { namespace } = named.metadata
    const inNamespace = this.#secrets.get(namespace)
    if (inNamespace?.delete(keyOf(named)) === true) this.#count -= 1
    if (inNamespace?.size === 0) this.#secrets.delete(namespace)
  }

  /** All that there were when we began are here. */
  listed(): void {
    this.#listed.resolve()
  }

  /** By namespace in the order given, and there by name; soon after the start it waits for the first list. */
  async loginsFor(
    place: RegistryPlace,
    { namespaces, signal }: Pick<LoginRequest, 'namespaces' | 'signal'>,
  ): Promise<RegistryLogin[]> {
    if (namespaces.length === 0) return []
    await this.#afterFirstList(signal)
    return namespaces.flatMap((namespace) =>
      [...(this.#secrets.get(namespace)?.values() ?? [])]
        .toSorted((a, b) => (a.name < b.name ? -1 : 1))
        .flatMap(({ name, auths }) => auths.loginsFor(place, originOf(namespace, name))),
    )
  }

  /** Waits together with whoever asked first: a cluster that cannot be read holds up the first reads, and none after them. */
  async #afterFirstList(signal: AbortSignal): Promise<void> {
    this.#firstList ??= Promise.race([
      this.#listed.promise,
      setTimeout(FIRST_LIST_MS, undefined, { ref: false }),
    ])
    await unlessAborted(this.#firstList, signal)
  }
}

function keyOf({ metadata, type }: Pick<KubeSecret, 'metadata' | 'type'>): string {
  return JSON.stringify([metadata.name, type])
}

function originOf(namespace: string, name: string): string {
  return `pull secret ${namespace}/${name}`
}

/** For people, of something that may be anything. */
function nameOf(object: unknown): string {
  const { data } = secretSchema.pick({ metadata: true }).safeParse(object)
  return data === undefined
    ? 'a pull secret without a name'
    : originOf(data.metadata.namespace, data.metadata.name)
}

/** Throws RegistryError INVALID_ARGUMENT. Programs that a config.json names are not run for a namespace. */
function authsOf({ type, data }: KubeSecret, origin: string): DockerAuths | undefined {
  const [jsonType, cfgType] = PULL_SECRET_TYPES
  if (type !== jsonType && type !== cfgType) return undefined
  const key = type === jsonType ? '.dockerconfigjson' : '.dockercfg'
  const value = data?.[key]
  if (value === undefined || value.length > 2 * AUTHS_BYTES_MAX) {
    throw new RegistryError('INVALID_ARGUMENT', `${origin} cannot be used: it has no usable ${key}`)
  }
  const bytes = Buffer.from(value, 'base64')
  return type === jsonType
    ? DockerAuths.ofConfig(bytes, origin).auths
    : DockerAuths.ofDockercfg(bytes, origin)
}
