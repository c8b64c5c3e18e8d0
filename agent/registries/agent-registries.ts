import type { BlockRequest } from '../../snapshotter/block-source.ts'
import type { ByteRange } from '../../snapshotter/byte-range.ts'
import { CodedError, RegistryError } from '../../snapshotter/errors.ts'
import type { ImageRegistries, RepositoryScope } from '../../snapshotter/image-registries.ts'
import type { Log } from '../../snapshotter/log.ts'
import type { Digest } from '../../snapshotter/oci/digest.ts'
import type { RegistryPlace } from '../../snapshotter/oci/registry-reference.ts'
import type { FindLogins, LoginRequest } from './find-logins.ts'
import { RegistryClient } from './registry-client.ts'
import type { RegistryHost } from './registry-http.ts'
import type { RegistryLogin } from './registry-login.ts'

type Collaborators = {
  /** Those that are asked first know best: what a namespace gave before what is meant for the whole node. */
  readonly logins: readonly FindLogins[]
  /** Which namespaces pull an image. */
  readonly pulls?: { namespacesPulling(reference: string): readonly string[] }
  readonly log: Pick<Log, 'info' | 'warn'>
  readonly metrics: {
    registryReceived(bytes: number): void
    registryLoginRefused(): void
  }
}

/** The registries of this node: what the snapshotter reads images from, with every credential that may be used for them. */
export class AgentRegistries implements ImageRegistries, AsyncDisposable {
  readonly #client: RegistryClient
  readonly #collaborators: Collaborators
  /** Repositories that cannot be read at the moment: each is logged once, and once more when it is back. */
  readonly #failing = new Set<string>()
  /** When each was back last: what had begun before then says nothing new. */
  readonly #recoveredMs = new Map<string, number>()

  constructor(
    config: { readonly hosts: Readonly<Record<string, RegistryHost>> },
    collaborators: Collaborators,
  ) {
    this.#collaborators = collaborators
    const { logins, metrics } = collaborators
    this.#client = new RegistryClient(config, {
      logins: { loginsFor: (place, request) => loginsOf(logins, place, request) },
      onBytes: (bytes) => metrics.registryReceived(bytes),
      onRefused: () => metrics.registryLoginRefused(),
    })
  }

  namespacesPulling(reference: string): readonly string[] {
    return this.#collaborators.pulls?.namespacesPulling(reference) ?? []
  }

  manifest(
    scope: RepositoryScope,
    selector: string,
    signal: AbortSignal,
  ): Promise<{ bytes: Uint8Array; digest: Digest }> {
    return this.#client.manifest(scope, selector, signal)
  }

  tags(scope: RepositoryScope, signal: AbortSignal): Promise<readonly string[]> {
    return this.#client.tags(scope, signal)
  }

  smallBlob(
    scope: RepositoryScope,
    digest: Digest,
    bytesMax: number,
    signal: AbortSignal,
  ): Promise<Uint8Array> {
    return this.#client.smallBlob(scope, digest, bytesMax, signal)
  }

  async readBlob(
    scopes: readonly RepositoryScope[],
    blob: { readonly digest: Digest; readonly size: number },
    range: ByteRange,
    { signal }: BlockRequest,
  ): Promise<Uint8Array> {
    const failures: CodedError[] = []
    for (const scope of scopes) {
      const startedMs = performance.now()
      try {
        const bytes = await this.#client.readRange(scope, blob, range, signal)
        this.#recovered(scope)
        return bytes
      } catch (error) {
        if (signal.aborted || !(error instanceof CodedError)) throw error
        this.#failed(scope, { startedMs, digest: blob.digest, error })
        failures.push(error)
      }
    }
    // What may pass is worth waiting for, whatever the others say.
    const passing = failures.find(
      ({ code }) => code === 'PERMISSION_DENIED' || code === 'UNAVAILABLE',
    )
    throw (
      passing ??
      failures[0] ??
      new RegistryError('NOT_FOUND', `blob ${blob.digest} is in no registry that is known`)
    )
  }

  /** Breaks off what is still on its way. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client[Symbol.asyncDispose]()
  }

  #failed(
    { host, repository }: RepositoryScope,
    read: { readonly startedMs: number; readonly digest: Digest; readonly error: CodedError },
  ): void {
    const { startedMs, digest, error } = read
    const name = `${host}/${repository}`
    if (this.#failing.has(name) || startedMs < (this.#recoveredMs.get(name) ?? 0)) return
    this.#failing.add(name)
    this.#collaborators.log.warn(
      { registry: host, repository, layer: digest, code: error.code },
      `layers cannot be read from ${name} and reads of them wait, then fail: ${error.message}`,
    )
  }

  #recovered({ host, repository }: RepositoryScope): void {
    const name = `${host}/${repository}`
    if (!this.#failing.delete(name)) return
    this.#recoveredMs.set(name, performance.now())
    this.#collaborators.log.info(
      { registry: host, repository },
      `layers are read from ${name} again`,
    )
  }
}

async function loginsOf(
  sources: readonly FindLogins[],
  place: RegistryPlace,
  request: LoginRequest,
): Promise<readonly RegistryLogin[]> {
  const found = await Promise.all(sources.map((source) => source.loginsFor(place, request)))
  return found.flat()
}
