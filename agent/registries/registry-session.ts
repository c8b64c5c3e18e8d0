import { z } from 'zod'
import { CodedError, RegistryError } from '../../snapshotter/errors.ts'
import type { RegistryPlace } from '../../snapshotter/oci/registry-reference.ts'
import { unlessAborted } from '../../snapshotter/unless-aborted.ts'
import type { Challenge } from './challenge.ts'
import type { HttpAnswer, RegistryHttp } from './registry-http.ts'
import type { RegistryLogin } from './registry-login.ts'

/** How long a token server may take, in ms. 15 s: half of a page fault's deadline. */
const TOKEN_MS = 15_000

/** An answer of a token server, in bytes. 1 MiB: tokens that list hundreds of scopes have some 10 KiB. */
const ANSWER_BYTES_MAX = 1024 * 1024

/** A token, in characters. 64 Ki: servers accept no longer header. */
const TOKEN_CHARS_MAX = 64 * 1024

/** How long a token lives if its server does not say, in seconds (distribution-spec, token authentication). */
const DEFAULT_LIFE_S = 60

/** A token is used no longer than until so much before its end, in ms: a read on a slow link takes that long. */
const MARGIN_MS = 10_000

/** What a token server is told of us in an OAuth2 exchange. */
const CLIENT_ID = 'ipdr'

const answerSchema = z.object({
  token: z.string().max(TOKEN_CHARS_MAX).optional(),
  access_token: z.string().max(TOKEN_CHARS_MAX).optional(),
  expires_in: z.number().min(0).optional(),
})

type Token = { readonly value: string; readonly untilMs: number }

/** What one login may send to one repository: a password, or a token that is fetched with it and fetched anew before it ends. */
export class RegistrySession {
  readonly #place: RegistryPlace
  readonly #login: RegistryLogin | undefined
  readonly #http: RegistryHttp
  #challenge: Challenge | undefined
  #token: Token | undefined
  #fetching: Promise<Token | undefined> | undefined

  /** Without a login it asks for what everybody gets. */
  constructor(place: RegistryPlace, login: RegistryLogin | undefined, http: RegistryHttp) {
    this.#place = place
    this.#login = login
    this.#http = http
  }

  /** The value of Authorization by what the registry asked for before; undefined if it has not asked yet. */
  async authorization(signal: AbortSignal): Promise<string | undefined> {
    if (this.#challenge?.scheme === 'basic') return this.#login?.basicAuthorization()
    if (this.#challenge?.scheme !== 'bearer') return undefined
    return this.#bearer(this.#challenge, signal)
  }

  /**
   * The value of Authorization by what the registry asks for now, after it did not take `refused`. Undefined if this login has
   * nothing else to show. Rejects with RegistryError: UNAVAILABLE (no answer of the token server), PERMISSION_DENIED (it must
   * not be shown a secret), INVALID_ARGUMENT (its answer is none).
   */
  async answer(
    challenges: readonly Challenge[],
    refused: string | undefined,
    signal: AbortSignal,
  ): Promise<string | undefined> {
    const bearer = challenges.find(({ scheme }) => scheme === 'bearer')
    const basic = challenges.find(({ scheme }) => scheme === 'basic')
    this.#challenge = bearer ?? basic
    if (this.#token !== undefined && refused === `Bearer ${this.#token.value}`) {
      this.#token = undefined
    }
    const next =
      bearer === undefined
        ? basic && this.#login?.basicAuthorization()
        : await this.#bearer(bearer, signal)
    return next === refused ? undefined : next
  }

  async #bearer(challenge: Challenge, signal: AbortSignal): Promise<string | undefined> {
    const own = this.#login?.bearerToken()
    if (own !== undefined) return `Bearer ${own}`
    if (this.#token === undefined || performance.now() >= this.#token.untilMs) {
      this.#token = await this.#fetchOnce(challenge, signal)
    }
    return this.#token && `Bearer ${this.#token.value}`
  }

  /** Reads of one layer come in dozens: one of them fetches the token. */
  #fetchOnce(challenge: Challenge, signal: AbortSignal): Promise<Token | undefined> {
    this.#fetching ??= this.#fetch(challenge).finally(() => {
      this.#fetching = undefined
    })
    return unlessAborted(this.#fetching, signal)
  }

  async #fetch({ parameters }: Challenge): Promise<Token | undefined> {
    const { host, repository } = this.#place
    const realm = parameters.get('realm') ?? ''
    const url = URL.canParse(realm) ? new URL(realm) : undefined
    if (url === undefined) {
      throw new RegistryError(
        'INVALID_ARGUMENT',
        `registry ${host} names no address of its token server`,
        { host },
      )
    }
    if (!this.#http.maySendSecretsTo(url, host)) {
      throw new RegistryError(
        'PERMISSION_DENIED',
        `registry ${host} wants credentials sent to ${url.protocol}//${url.host}, which is not https; they are not`,
        { host },
      )
    }
    // What we need, whatever it asks for: nobody gets a token for another repository through us.
    const scope = `repository:${repository}:pull`
    const answer = await this.#ask(url, scope, parameters.get('service'))
    const { status } = answer
    if (status === 200) return parseToken(await readAnswer(answer, host), host)
    await answer.release()
    if (status === 400 || status === 401 || status === 403) return undefined
    throw new RegistryError(
      'UNAVAILABLE',
      `the token server ${url.host} of registry ${host} answers HTTP ${status}`,
      { host, status },
    )
  }

  #ask(realm: URL, scope: string, service: string | undefined): Promise<HttpAnswer> {
    const signal = AbortSignal.timeout(TOKEN_MS)
    const { host } = this.#place
    const asked = { ...(service === undefined ? {} : { service }), scope }
    const refreshToken = this.#login?.refreshToken()
    if (refreshToken !== undefined) {
      const form = new URLSearchParams({
        grant_type: 'refresh_token',
        client_id: CLIENT_ID,
        refresh_token: refreshToken,
        ...asked,
      })
      return timely(this.#http.send(host, realm, { form, signal }), realm)
    }
    const url = new URL(realm)
    for (const [name, value] of Object.entries(asked)) url.searchParams.set(name, value)
    const authorization = this.#login?.basicAuthorization()
    return timely(this.#http.send(host, url, { authorization, signal }), realm)
  }
}

async function timely(answer: Promise<HttpAnswer>, { host }: URL): Promise<HttpAnswer> {
  try {
    return await answer
  } catch (error) {
    if (error instanceof CodedError) throw error
    const message = `the token server ${host} did not answer within ${TOKEN_MS} ms`
    throw new RegistryError('UNAVAILABLE', message, { host })
  }
}

async function readAnswer({ body }: HttpAnswer, host: string): Promise<Buffer> {
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of body) {
    bytes += piece.length
    if (bytes > ANSWER_BYTES_MAX) {
      throw new RegistryError(
        'RESOURCE_EXHAUSTED',
        `the token server of ${host} sent more than ${ANSWER_BYTES_MAX} bytes`,
        { host },
      )
    }
    pieces.push(piece)
  }
  return Buffer.concat(pieces)
}

function parseToken(bytes: Buffer, host: string): Token {
  let value: unknown
  try {
    value = JSON.parse(bytes.toString())
  } catch {
    value = undefined
  }
  const parsed = answerSchema.safeParse(value)
  const token = parsed.data?.token || parsed.data?.access_token
  // A token goes into a header as it is (RFC 6750, section 2.1).
  if (token === undefined || !/^[\x21-\x7e]+$/.test(token)) {
    throw new RegistryError('INVALID_ARGUMENT', `the token server of ${host} sent no token`, {
      host,
    })
  }
  const lifeMs = (parsed.data?.expires_in ?? DEFAULT_LIFE_S) * 1000
  const margin = Math.min(MARGIN_MS, lifeMs / 2)
  return { value: token, untilMs: performance.now() + lifeMs - margin }
}
