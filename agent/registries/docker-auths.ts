import { z } from 'zod'
import { RegistryError } from '../../snapshotter/errors.ts'
import type { RegistryPlace } from '../../snapshotter/oci/registry-reference.ts'
import { RegistryLogin } from './registry-login.ts'

/** A file of credentials, in bytes. 1 MiB: what a Kubernetes secret may have (core/v1, MaxSecretSize). */
export const AUTHS_BYTES_MAX: number = 1024 * 1024

/** Registries of one file. 1,000: some hundred bytes each fill a tenth of the file. */
const ENTRIES_MAX = 1_000

/** A name, password or token, in characters. 32 Ki: tokens of clouds have some 2 Ki. */
const SECRET_CHARS_MAX = 32 * 1024

const secret = z.string().max(SECRET_CHARS_MAX).optional()

const entrySchema = z.object({
  auth: secret,
  username: secret,
  password: secret,
  identitytoken: secret,
  registrytoken: secret,
})

const authsSchema = z
  .record(z.string().max(1_024), entrySchema)
  .refine(
    (auths) => Object.keys(auths).length <= ENTRIES_MAX,
    `has more than ${ENTRIES_MAX} registries`,
  )

/** docker's config.json, as far as credentials go (docker/cli, cli/config/configfile). */
const fileSchema = z.object({
  auths: authsSchema.nullish(),
  credsStore: z.string().max(100).nullish(),
  credHelpers: z.record(z.string().max(1_024), z.string().max(100)).nullish(),
})

/** What a config.json says: credentials, and programs that know more. */
export type DockerConfigFile = {
  readonly auths: DockerAuths
  readonly credsStore: string | undefined
  /** Programs by the registry that they are for, as `registryKey` spells it. */
  readonly credHelpers: ReadonlyMap<string, string>
}

type Entry = z.infer<typeof entrySchema>

/** Credentials as docker writes them down: by registry, or by a path in it, of which the longest that fits counts. */
export class DockerAuths {
  readonly #entries: ReadonlyMap<string, Entry>

  private constructor(entries: Readonly<Record<string, Entry>>) {
    this.#entries = new Map(
      Object.entries(entries).map(([key, entry]) => [registryKey(key), entry]),
    )
  }

  /** The `auths` of an old `.dockercfg`, which has nothing else. Throws RegistryError INVALID_ARGUMENT, without what is in it. */
  static ofDockercfg(bytes: Uint8Array, origin: string): DockerAuths {
    return new DockerAuths(checked(authsSchema, bytes, origin))
  }

  /** A config.json. Throws RegistryError INVALID_ARGUMENT, without what is in it; `origin` names it. */
  static ofConfig(bytes: Uint8Array, origin: string): DockerConfigFile {
    const { auths, credsStore, credHelpers } = checked(fileSchema, bytes, origin)
    return {
      auths: new DockerAuths(auths ?? {}),
      credsStore: credsStore === '' ? undefined : (credsStore ?? undefined),
      credHelpers: new Map(
        Object.entries(credHelpers ?? {}).map(([key, name]) => [registryKey(key), name]),
      ),
    }
  }

  /** What fits the repository, the longest path first. */
  loginsFor(place: RegistryPlace, origin: string): RegistryLogin[] {
    return keysOf(place).flatMap((key) => {
      const entry = this.#entries.get(key)
      const login = entry && loginOf(entry, `${origin} (${key})`)
      return login === undefined ? [] : [login]
    })
  }
}

/** A registry as one would write it in an image's name: config.json also has it with a scheme and the version of an API. */
export function registryKey(written: string): string {
  const bare = written
    .replace(/^https?:\/\//, '')
    .replace(/\/(?:v1|v2)?\/?$/, '')
    .toLowerCase()
  const [host = '', ...path] = bare.split('/')
  const isDockerHub = host === 'index.docker.io' || host === 'registry-1.docker.io'
  return [isDockerHub ? 'docker.io' : host, ...path].join('/')
}

/** The repository, the paths above it, and the registry alone. */
function keysOf({ host, repository }: RegistryPlace): string[] {
  const parts = repository.split('/')
  const paths = parts.map((_, index) => [host, ...parts.slice(0, parts.length - index)].join('/'))
  return [...paths, host]
}

function loginOf(entry: Entry, origin: string): RegistryLogin | undefined {
  const { auth, username, password, identitytoken, registrytoken } = entry
  if (identitytoken !== undefined && identitytoken !== '') {
    return RegistryLogin.identityToken(origin, identitytoken)
  }
  if (registrytoken !== undefined && registrytoken !== '') {
    return RegistryLogin.registryToken(origin, registrytoken)
  }
  if (auth !== undefined && auth !== '') return basicLogin(auth, origin)
  if (username === undefined || username === '' || password === undefined) return undefined
  return RegistryLogin.password(origin, username, password)
}

/** `auth` is user and password in Base64, with a colon between. Undefined if it is not. */
export function basicLogin(auth: string, origin: string): RegistryLogin | undefined {
  const text = Buffer.from(auth, 'base64').toString().replace(/\0+$/, '')
  const colon = text.indexOf(':')
  if (colon <= 0) return undefined
  return RegistryLogin.password(origin, text.slice(0, colon), text.slice(colon + 1))
}

function checked<T>(schema: z.ZodType<T>, bytes: Uint8Array, origin: string): T {
  const broken = (why: string): RegistryError =>
    new RegistryError('INVALID_ARGUMENT', `${origin} cannot be used: ${why}`)
  if (bytes.length > AUTHS_BYTES_MAX) {
    throw broken(`it has ${bytes.length} bytes, it may have ${AUTHS_BYTES_MAX}`)
  }
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString())
  } catch {
    // The parser's own message quotes the text, and so secrets.
    throw broken('it is no JSON')
  }
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const fields = parsed.error.issues.map(({ path }) => path.slice(0, 3).join('.') || 'top level')
  throw broken(`not as docker writes it at ${[...new Set(fields)].slice(0, 5).join(', ')}`)
}
