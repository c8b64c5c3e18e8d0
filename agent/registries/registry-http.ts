import type { IncomingHttpHeaders } from 'node:http'
import { Agent, type Dispatcher, request } from 'undici'
import { RegistryError } from '../../snapshotter/errors.ts'

/** How one registry is reached, where that is not as everywhere. */
export type RegistryHost = {
  /** Asked in its place, like http://10.0.0.7:5000; a path is put before `/v2/`. */
  readonly mirror?: string | undefined
  /** Without TLS. Loopback needs no such leave. */
  readonly insecure?: boolean | undefined
  /** Certificates to trust beside those of the system, in PEM. */
  readonly ca?: string | undefined
}

/** Connections to one server. 8: as many blocks as one gateway is asked for at once. */
const CONNECTIONS_MAX = 8

/** TCP and TLS hand-shakes, in ms: three lost packets. */
const CONNECT_MS = 5_000

/** Until an answer begins, and between two pieces of it, in ms. 15 s: a registry that has to ask its own storage takes some. */
const STALL_MS = 15_000

/** Redirects followed in a row. 5: registries send to a blob store, and that rarely on. */
const REDIRECTS_MAX = 5

/** Of an answer that nobody reads, in bytes: less than a new connection costs. */
const DUMPED_BYTES_MAX = 64 * 1024

/** Longest wait that a server may ask for, in ms. 10 s: a third of a page fault's deadline. */
const RETRY_AFTER_MS_MAX = 10_000

/** An answer whose body is still to be read, or to be given up by `release`. */
export type HttpAnswer = {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: AsyncIterable<Buffer>
  /** Where it came from in the end. */
  readonly url: URL
  /** Whether that is another server than the one asked: what it says of credentials is not about ours. */
  readonly isElsewhere: boolean
  /** Frees the connection. */
  release(): Promise<void>
}

export type HttpRequest = {
  readonly headers?: Readonly<Record<string, string>>
  /** Shown to the server of the URL alone: no redirect carries it to another one. */
  readonly authorization?: string | undefined
  /** Sent as a form by POST; without it the method is GET. */
  readonly form?: URLSearchParams
  readonly signal: AbortSignal
}

/** Requests to registries, their blob stores and their token servers. */
export class RegistryHttp implements AsyncDisposable {
  readonly #hosts: Readonly<Record<string, RegistryHost>>
  readonly #agents = new Map<string, Agent>()

  constructor(hosts: Readonly<Record<string, RegistryHost>>) {
    this.#hosts = hosts
  }

  /** Where the API of a registry is, without a slash at the end. Throws RegistryError INVALID_ARGUMENT for a mirror that must not be. */
  baseUrl(host: string): URL {
    const { mirror, insecure = false } = this.#hosts[host] ?? {}
    if (mirror !== undefined) {
      const url = new URL(mirror)
      if (url.protocol === 'https:' || insecure || isLoopback(url)) return url
      throw new RegistryError(
        'INVALID_ARGUMENT',
        `the mirror of ${host} is plain HTTP; set insecure for it if all on the way may see and change what is sent`,
      )
    }
    const address = host === 'docker.io' ? 'registry-1.docker.io' : host
    const plain = new URL(`http://${address}`)
    return insecure || isLoopback(plain) ? plain : new URL(`https://${address}`)
  }

  /** Whether what a registry says about credentials may lead to this URL, to which a secret will be sent. */
  maySendSecretsTo(url: URL, host: string): boolean {
    if (url.username !== '' || url.password !== '') return false
    if (url.protocol === 'https:') return true
    return url.protocol === 'http:' && (isLoopback(url) || this.#hosts[host]?.insecure === true)
  }

  /**
   * Sends a request, and follows where the answer points to. Rejects with RegistryError: UNAVAILABLE (no answer; 429 and 5xx
   * too, with `retryAfterMs` among its facts), INVALID_ARGUMENT (a redirect that must not be followed); or with what `signal`
   * aborts with.
   */
  async send(host: string, url: URL, options: HttpRequest): Promise<HttpAnswer> {
    let [at, { authorization }] = [url, options]
    for (let redirects = 0; ; redirects++) {
      const answer = await this.#once(host, at, { ...options, authorization })
      const location = answer.headers.location
      if (answer.status < 300 || answer.status > 399 || location === undefined) return answer
      await answer.release()
      if (redirects === REDIRECTS_MAX || options.form !== undefined) {
        throw refusedRedirect(at, `after ${redirects} redirects it points on`)
      }
      const next = parseLocation(location, at)
      if (at.protocol === 'https:' && next.protocol !== 'https:') {
        throw refusedRedirect(at, `it points to plain HTTP at ${next.host}`)
      }
      if (next.origin !== at.origin) authorization = undefined
      at = next
    }
  }

  async #once(host: string, url: URL, options: HttpRequest): Promise<HttpAnswer> {
    const { headers = {}, authorization, form, signal } = options
    signal.throwIfAborted()
    let answer: Dispatcher.ResponseData
    try {
      answer = await request(url, {
        dispatcher: this.#agentOf(host),
        method: form === undefined ? 'GET' : 'POST',
        signal,
        body: form?.toString() ?? null,
        headers: {
          // A blob is what its digest says, not what a server makes of it.
          'accept-encoding': 'identity',
          ...(form && { 'content-type': 'application/x-www-form-urlencoded' }),
          ...headers,
          ...(authorization === undefined ? {} : { authorization }),
        },
      })
    } catch (error) {
      signal.throwIfAborted()
      throw unreachable(url, error)
    }
    const { statusCode: status, body } = answer
    const release = async (): Promise<void> => {
      await body.dump({ limit: DUMPED_BYTES_MAX, signal }).catch(() => undefined)
    }
    if (status === 429 || status >= 500) {
      await release()
      const retryAfterMs = retryAfter(one(answer.headers['retry-after']))
      throw new RegistryError('UNAVAILABLE', `${url.host} answers HTTP ${status}`, {
        host: url.host,
        status,
        retryAfterMs,
      })
    }
    return {
      status,
      headers: answer.headers,
      body: pieces(body, url, signal),
      url,
      isElsewhere: url.origin !== this.baseUrl(host).origin,
      release,
    }
  }

  /** One for each registry, since each may have certificates of its own. */
  #agentOf(host: string): Agent {
    const ca = this.#hosts[host]?.ca
    const key = ca === undefined ? '' : host
    const known = this.#agents.get(key)
    if (known !== undefined) return known
    const agent = new Agent({
      connections: CONNECTIONS_MAX,
      pipelining: 1,
      connect: { timeout: CONNECT_MS, ...(ca === undefined ? {} : { ca }) },
      headersTimeout: STALL_MS,
      bodyTimeout: STALL_MS,
    })
    this.#agents.set(key, agent)
    return agent
  }

  /** Breaks off what is still on its way. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#agents.values()].map((agent) => agent.destroy()))
  }
}

async function* pieces(
  body: AsyncIterable<Buffer>,
  url: URL,
  signal: AbortSignal,
): AsyncGenerator<Buffer, void> {
  try {
    yield* body
  } catch (error) {
    signal.throwIfAborted()
    throw unreachable(url, error)
  }
}

/** 127.0.0.0/8, ::1 and localhost: what they name is this machine. */
function isLoopback({ hostname }: URL): boolean {
  return hostname === 'localhost' || hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(hostname)
}

function parseLocation(location: string, at: URL): URL {
  const next = URL.canParse(location, at.href) ? new URL(location, at.href) : undefined
  const isHttp = next?.protocol === 'https:' || next?.protocol === 'http:'
  if (next === undefined || !isHttp || next.username !== '' || next.password !== '') {
    throw refusedRedirect(at, 'it points to no address of HTTP')
  }
  return next
}

function refusedRedirect({ host }: URL, why: string): RegistryError {
  return new RegistryError('INVALID_ARGUMENT', `an answer of ${host} is not followed: ${why}`, {
    host,
  })
}

/** Without the URL's path and query, which a blob store may have signed. */
function unreachable({ host }: URL, error: unknown): RegistryError {
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  const message = error instanceof Error ? error.message : String(error)
  const why = [message, code].filter(
    (part, index) => part !== '' && (index === 0 || !message.includes(part)),
  )
  return new RegistryError(
    'UNAVAILABLE',
    `${host} cannot be reached: ${why.join(' ')}`,
    { host },
    error,
  )
}

/** A header that comes once. */
function one(header: string | string[] | undefined): string | undefined {
  return typeof header === 'string' ? header : header?.[0]
}

/** Seconds, or a date (RFC 9110, section 10.2.3). */
function retryAfter(header: string | undefined): number | undefined {
  if (header === undefined) return undefined
  const ms = /^\d{1,9}$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now()
  return ms >= 0 ? Math.min(ms, RETRY_AFTER_MS_MAX) : undefined
}
