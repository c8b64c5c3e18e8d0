import { spawn } from 'node:child_process'
import { z } from 'zod'
import { RegistryError } from '../../snapshotter/errors.ts'
import { RegistryLogin } from './registry-login.ts'

/** How long a helper may take, in ms. 10 s: one call to a cloud's API and its retries. */
const HELPER_MS = 10_000

/** What it may say, in bytes. 64 KiB: a user name and a token. */
const OUTPUT_BYTES_MAX = 64 * 1024

/** Of the file name behind `docker-credential-`. */
const NAME = /^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$/

/** The user name by which a helper says that its secret is an identity token (docker-credential-helpers). */
const IDENTITY_TOKEN_USER = '<token>'

/** What a helper prints when it knows the registry not, and so is no failure (docker-credential-helpers, credentials/error.go). */
const NOT_FOUND = 'credentials not found in native keychain'

const answerSchema = z.object({ Username: z.string(), Secret: z.string() })

/**
 * Asks `docker-credential-<name> get` for a registry, which it reads on its standard input. Undefined if it has none. Rejects
 * with RegistryError: UNAVAILABLE (no such program, it failed or took too long), INVALID_ARGUMENT (a wrong name or answer);
 * never with anything that it printed.
 */
export async function askCredentialHelper(
  name: string,
  registry: string,
  signal: AbortSignal,
): Promise<RegistryLogin | undefined> {
  const program = `docker-credential-${name}`
  if (!NAME.test(name)) {
    throw new RegistryError(
      'INVALID_ARGUMENT',
      `'${name.slice(0, 80)}' is not the name of a credential helper`,
    )
  }
  const { code, output } = await run(program, registry, signal)
  if (code !== 0) {
    if (output.includes(NOT_FOUND)) return undefined
    throw new RegistryError(
      'UNAVAILABLE',
      `${program} get failed for ${registry} with exit code ${code}; run it by hand to see why`,
      { program, registry },
    )
  }
  const answer = answerSchema.safeParse(parseJson(output))
  if (!answer.success) {
    throw new RegistryError(
      'INVALID_ARGUMENT',
      `${program} get did not answer for ${registry} with a user name and a secret`,
      { program, registry },
    )
  }
  const { Username: username, Secret: secret } = answer.data
  const origin = `credential helper ${program} (${registry})`
  return username === IDENTITY_TOKEN_USER
    ? RegistryLogin.identityToken(origin, secret)
    : RegistryLogin.password(origin, username, secret)
}

function run(
  program: string,
  registry: string,
  signal: AbortSignal,
): Promise<{ code: number | null; output: string }> {
  const { promise, resolve, reject } = Promise.withResolvers<{
    code: number | null
    output: string
  }>()
  const child = spawn(program, ['get'], {
    stdio: ['pipe', 'pipe', 'ignore'],
    signal: AbortSignal.any([signal, AbortSignal.timeout(HELPER_MS)]),
    killSignal: 'SIGKILL',
  })
  const pieces: Buffer[] = []
  let bytes = 0
  child.stdout.on('data', (piece: Buffer) => {
    bytes += piece.length
    if (bytes > OUTPUT_BYTES_MAX) child.kill('SIGKILL')
    else pieces.push(piece)
  })
  child.on('error', (cause) => {
    const isMissing = 'code' in cause && cause.code === 'ENOENT'
    const why = isMissing ? 'is not in the PATH' : `did not answer within ${HELPER_MS} ms`
    reject(new RegistryError('UNAVAILABLE', `${program} ${why}`, { program, registry }))
  })
  child.on('close', (code) => resolve({ code, output: Buffer.concat(pieces).toString() }))
  // One that ends without reading is judged by its exit code.
  child.stdin.on('error', () => undefined)
  child.stdin.end(registry)
  return promise
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
