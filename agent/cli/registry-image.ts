import { stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { CodedError, ImageError, RegistryError } from '../../snapshotter/errors.ts'
import type { RepositoryScope } from '../../snapshotter/image-registries.ts'
import type { Digest } from '../../snapshotter/oci/digest.ts'
import { chooseManifest, parseManifest } from '../../snapshotter/oci/manifest.ts'
import type { Platform } from '../../snapshotter/oci/platform.ts'
import {
  formatRegistryReference,
  type RegistryReference,
} from '../../snapshotter/oci/registry-reference.ts'
import type { ImageToPush } from '../../snapshotter/publish.ts'
import { DockerConfig } from '../registries/docker-config.ts'
import { RegistryClient } from '../registries/registry-client.ts'
import { EXIT_CODES } from './exit-codes.ts'
import { CommandFailure } from './failure.ts'

export type RegistryImageOptions = {
  /** What to take of an index; undefined: all of it. */
  readonly platform: Platform | undefined
  /** docker's config.json, or one like it; undefined: where docker has it. */
  readonly authfile: string | undefined
  /** Plain HTTP even where it is not loopback. */
  readonly insecure: boolean
}

/** An image in a registry, read blob by blob as it is pushed. Dispose of it to close the connections. */
export class RegistryImage implements ImageToPush, AsyncDisposable {
  readonly manifest: Uint8Array
  readonly #client: RegistryClient
  readonly #scope: RepositoryScope
  /** What indexes name: to a registry, a manifest is no blob. */
  readonly #manifests = new Set<Digest>()

  private constructor(manifest: Uint8Array, client: RegistryClient, scope: RepositoryScope) {
    this.manifest = manifest
    this.#client = client
    this.#scope = scope
    this.#noteManifests(manifest)
  }

  /**
   * Looks the name up. Rejects with CommandFailure that says what to do, RegistryError, and ImageError NOT_FOUND if it has
   * nothing for the platform.
   */
  static async open(
    reference: RegistryReference,
    { platform, authfile, insecure }: RegistryImageOptions,
    signal: AbortSignal,
  ): Promise<RegistryImage> {
    const { host, repository, selector } = reference
    const problems: string[] = []
    const logins = new DockerConfig(await authfilePath(authfile), {
      onProblem: (sentence) => problems.push(sentence),
    })
    const client = new RegistryClient({ hosts: { [host]: { insecure } } }, { logins })
    try {
      const scope = { host, repository, namespaces: [] }
      const found = await client.manifest(scope, selector, signal)
      const name = formatRegistryReference(reference)
      const document = parseManifest(found.bytes, name)
      if (document.kind !== 'index' || platform === undefined) {
        return new RegistryImage(found.bytes, client, scope)
      }
      const { digest } = chooseManifest(document, platform, name)
      const { bytes } = await client.manifest(scope, digest, signal)
      return new RegistryImage(bytes, client, scope)
    } catch (error) {
      await client[Symbol.asyncDispose]()
      throw advised(error, host, problems)
    }
  }

  async *blob(digest: Digest, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
    try {
      if (!this.#manifests.has(digest)) {
        yield* this.#client.streamBlob(this.#scope, digest, signal)
        return
      }
      const { bytes } = await this.#client.manifest(this.#scope, digest, signal)
      this.#noteManifests(bytes)
      yield bytes
    } catch (error) {
      if (!(error instanceof RegistryError) || error.code !== 'NOT_FOUND') throw error
      throw new ImageError('NOT_FOUND', error.message, error.facts, error)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client[Symbol.asyncDispose]()
  }

  #noteManifests(bytes: Uint8Array): void {
    const document = parseManifest(bytes, 'manifest')
    if (document.kind !== 'index') return
    for (const { digest } of document.manifests) this.#manifests.add(digest)
  }
}

/** Where docker keeps its credentials, unless a file was named, which must be there. */
async function authfilePath(given: string | undefined): Promise<string> {
  if (given === undefined) {
    return join(process.env['DOCKER_CONFIG'] || join(homedir(), '.docker'), 'config.json')
  }
  const found = await stat(given).catch(() => undefined)
  if (found?.isFile() === true) return given
  throw new CommandFailure(EXIT_CODES.notFound, `there is no file ${given}`)
}

/** The same failure, and what to do. */
function advised(error: unknown, host: string, problems: readonly string[]): unknown {
  if (!(error instanceof CodedError)) return error
  switch (error.code) {
    case 'PERMISSION_DENIED':
      return new CommandFailure(
        EXIT_CODES.noPermission,
        [error.message, ...problems].join('; '),
        `Run docker login ${host}, or name a file with credentials by --authfile.`,
        error,
      )
    case 'UNAVAILABLE':
      return new CommandFailure(
        EXIT_CODES.unavailable,
        error.message,
        'If this registry has no TLS, say --insecure.',
        error,
      )
    default:
      return error
  }
}
