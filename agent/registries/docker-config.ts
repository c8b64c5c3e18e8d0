import { open } from 'node:fs/promises'
import { CodedError, RegistryError } from '../../snapshotter/errors.ts'
import type { RegistryPlace } from '../../snapshotter/oci/registry-reference.ts'
import { askCredentialHelper } from './credential-helper.ts'
import { AUTHS_BYTES_MAX, DockerAuths, type DockerConfigFile } from './docker-auths.ts'
import type { FindLogins, LoginRequest } from './find-logins.ts'
import type { RegistryLogin } from './registry-login.ts'

/** How long what a helper said is used without asking again, in ms. 5 min: the shortest tokens of clouds live for 15. */
const HELPER_KEPT_MS = 300_000

/** Docker Hub's name in what docker stores and asks helpers for. */
const DOCKER_HUB_SERVER = 'https://index.docker.io/v1/'

/** Told once of what makes a file or helper useless; all else goes on without it. */
export type CredentialProblems = (sentence: string) => void

/** The credentials of docker's config.json on this machine: those in it, and those of the helpers that it names. */
export class DockerConfig implements FindLogins {
  readonly path: string
  readonly #onProblem: CredentialProblems
  #read: { readonly version: string; readonly file: DockerConfigFile | undefined } | undefined
  readonly #helped = new Map<string, { login: RegistryLogin | undefined; untilMs: number }>()

  constructor(path: string, { onProblem }: { onProblem: CredentialProblems }) {
    this.path = path
    this.#onProblem = onProblem
  }

  /** What fits, most specific first. A file that is not there, or cannot be read, has none: `onProblem` is told. */
  async loginsFor(place: RegistryPlace, request: LoginRequest): Promise<RegistryLogin[]> {
    const file = await this.#file()
    if (file === undefined) return []
    const helper = file.credHelpers.get(place.host) ?? file.credsStore
    const helped = helper === undefined ? undefined : await this.#help(helper, place.host, request)
    const written = file.auths.loginsFor(place, `docker config ${this.path}`)
    return helped === undefined ? written : [helped, ...written]
  }

  /** The file as it is now: read again whenever it was changed, so that docker login needs no restart. */
  async #file(): Promise<DockerConfigFile | undefined> {
    let version = 'missing'
    try {
      await using handle = await open(this.path)
      const { mtimeNs, size, ino } = await handle.stat({ bigint: true })
      version = `${mtimeNs} ${size} ${ino}`
      if (this.#read?.version === version) return this.#read.file
      if (size > AUTHS_BYTES_MAX) {
        const message = `docker config ${this.path} has ${size} bytes, it may have ${AUTHS_BYTES_MAX}`
        throw new RegistryError('INVALID_ARGUMENT', message)
      }
      const file = DockerAuths.ofConfig(await handle.readFile(), `docker config ${this.path}`)
      this.#read = { version, file }
      return file
    } catch (error) {
      if (this.#read?.version === version) return undefined
      this.#read = { version, file: undefined }
      this.#onProblem(
        error instanceof CodedError
          ? error.message
          : `docker config ${this.path} cannot be read: ${error instanceof Error ? error.message : String(error)}`,
      )
      return undefined
    }
  }

  async #help(
    helper: string,
    host: string,
    { fresh, signal }: LoginRequest,
  ): Promise<RegistryLogin | undefined> {
    const key = `${helper} ${host}`
    const kept = this.#helped.get(key)
    if (!fresh && kept !== undefined && performance.now() < kept.untilMs) return kept.login
    try {
      const server = host === 'docker.io' ? DOCKER_HUB_SERVER : host
      const login = await askCredentialHelper(helper, server, signal)
      this.#helped.set(key, { login, untilMs: performance.now() + HELPER_KEPT_MS })
      return login
    } catch (error) {
      if (signal.aborted || !(error instanceof CodedError)) throw error
      this.#onProblem(error.message)
      return undefined
    }
  }
}
