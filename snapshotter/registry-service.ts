import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyPluginAsync, FastifyReply, FastifyRequest } from 'fastify'
import type { CID } from 'multiformats/cid'
import parseRange from 'range-parser'
import type { ByteRange } from './byte-range.ts'
import { CodedError, type ErrorCode, ImageError } from './errors.ts'
import type { Log } from './log.ts'
import { MEDIA_TYPES } from './oci/descriptor.ts'
import { type Digest, DigestCheck, parseDigest } from './oci/digest.ts'
import { parseManifest } from './oci/manifest.ts'
import { checkRepository, IMAGE_HOST, resolveReference } from './oci/reference.ts'

/** A blob that can be read in parts. */
export type RegistryBlob = {
  readonly size: number
  /** Bytes of `range`, in order. Rejects with BlockError when they cannot be had. */
  stream(range: ByteRange, signal: AbortSignal): AsyncIterable<Uint8Array>
}

/** The images that the registry serves. All calls reject with ImageError or BlockError; NOT_FOUND is an answer, not an accident. */
export interface ImageDirectory {
  /** A manifest or index by tag or digest; when by digest, its bytes have been checked. */
  manifest(
    root: CID,
    reference: string,
    signal: AbortSignal,
  ): Promise<{ bytes: Uint8Array; digest: Digest; mediaType: string }>
  /** A config or layer; whoever reads all of it checks the digest. */
  blob(root: CID, digest: string, signal: AbortSignal): Promise<RegistryBlob>
  /** Tags, sorted. */
  tags(root: CID, signal: AbortSignal): Promise<readonly string[]>
}

/** A manifest or index that a client has just been given. */
export type ServedManifest = {
  readonly root: CID
  readonly digest: Digest
  readonly mediaType: string
  readonly bytes: Uint8Array
}

export type RegistryCollaborators = {
  readonly images: ImageDirectory
  readonly log: Log
  /**
   * Told of every manifest before its answer is sent, so that what it makes known is known when the client acts on it. Rejects
   * if the manifest must not be handed out.
   */
  readonly onManifest?: (served: ServedManifest, signal: AbortSignal) => Promise<void>
  /** Told of every piece of a manifest or blob that a client is sent. */
  readonly onSent?: (kind: 'manifest' | 'blob', bytes: number) => void
}

/** How long a manifest or the next bytes of a blob may take, in ms. 60 s: kubelet's pull makes no progress for that long and gives up. */
const ANSWER_MS = 60_000

/** What a client is told to wait, in seconds, when nobody could be reached: one back-off step of the kubelet. */
const RETRY_AFTER_S = 10

/** Characters of a sentence in a status line. 512: Go's client reads lines of 4,096 bytes. */
const REASON_CHARS_MAX = 512

/** Blobs on their way at once. containerd pulls 3 layers of an image at a time: room for 20 pulls, 16 MiB each while they stream. */
const BLOB_STREAMS_MAX = 64

/** Digests remembered for names that hold no CID: 1,000 images of ten blobs, about 2 MB. */
const REMEMBERED_DIGESTS_MAX = 10_000

/** Error codes of OCI distribution-spec, "Error Codes". */
type OciErrorCode =
  | 'BLOB_UNKNOWN'
  | 'DENIED'
  | 'DIGEST_INVALID'
  | 'MANIFEST_INVALID'
  | 'MANIFEST_UNKNOWN'
  | 'NAME_INVALID'
  | 'NAME_UNKNOWN'
  | 'TOOMANYREQUESTS'
  | 'UNSUPPORTED'
  | 'UNAVAILABLE'
  | 'UNKNOWN'

class RegistryError extends Error {
  readonly status: number
  readonly ociCode: OciErrorCode

  constructor(status: number, ociCode: OciErrorCode, message: string, cause?: unknown) {
    super(message, { cause })
    this.name = 'RegistryError'
    this.status = status
    this.ociCode = ociCode
  }
}

/** `/v2/<name>/<kind>/<reference>` of OCI distribution-spec. The name may hold slashes. */
const ENDPOINT = /^(?<name>.+)\/(?<kind>manifests|blobs|tags|referrers)\/(?<reference>[^/]+)$/

/**
 * The pull part of OCI distribution-spec 1.1, read-only: what hosts.toml points containerd to for the reserved host. The root CID is
 * the repository name (`<cid>` or `ipfs/<cid>`) or the tag of any name. The query (`?ns=`) says nothing and is not read.
 */
export function registryService(collaborators: RegistryCollaborators): FastifyPluginAsync {
  return async (app) => new Registry(collaborators).route(app)
}

class Registry {
  readonly #images: ImageDirectory
  readonly #log: Log
  readonly #onManifest: RegistryCollaborators['onManifest']
  readonly #onSent: RegistryCollaborators['onSent']
  /** Roots of names that hold no CID, by `name@digest`: containerd resolves app:<cid>, then asks for app by digest only. */
  readonly #roots = new Map<string, CID>()
  #blobStreams = 0

  constructor({ images, log, onManifest, onSent }: RegistryCollaborators) {
    this.#images = images
    this.#log = log
    this.#onManifest = onManifest
    this.#onSent = onSent
  }

  route(app: FastifyInstance): void {
    app.addHook('onSend', async (_request, reply) => {
      reply.header('docker-distribution-api-version', 'registry/2.0')
    })
    app.setErrorHandler((error, request, reply) => this.#fail(error, request, reply))
    app.setNotFoundHandler((request, reply) =>
      this.#fail(unsupported(request.method, request.url), request, reply),
    )
    // Whatever a push sends is not read before it is refused.
    app.removeAllContentTypeParsers()
    app.addContentTypeParser('*', (_request, _body, done) => done(null))
    app.route({
      method: ['GET', 'HEAD'],
      url: '/v2/',
      handler: async () => ({}),
    })
    app.route({
      method: ['GET', 'HEAD'],
      url: '/v2/_catalog',
      // What there is on IPFS cannot be listed; an empty page is a valid answer.
      handler: async () => ({ repositories: [] }),
    })
    app.route<{ Params: { '*': string }; Querystring: { n?: string; last?: string } }>({
      method: ['GET', 'HEAD'],
      url: '/v2/*',
      handler: async (request, reply) => {
        const { name, kind, reference } = ENDPOINT.exec(request.params['*'])?.groups ?? {}
        if (name === undefined || reference === undefined) {
          throw unsupported(request.method, request.url)
        }
        const signal = endOf(reply)
        switch (kind) {
          case 'manifests':
            return this.#manifest(name, reference, request, reply, signal)
          case 'blobs':
            return this.#blob(name, reference, request, reply, signal)
          case 'referrers':
            return referrers(name, reference, reply)
          default:
            return this.#tags(name, reference, request.query, reply, signal)
        }
      },
    })
  }

  async #manifest(
    name: string,
    reference: string,
    request: FastifyRequest,
    reply: FastifyReply,
    gone: AbortSignal,
  ): Promise<FastifyReply> {
    const { root, selector } = this.#resolve(name, reference, 'MANIFEST_UNKNOWN')
    const signal = AbortSignal.any([gone, AbortSignal.timeout(ANSWER_MS)])
    const found = await this.#images.manifest(root, selector, signal).catch((error: unknown) => {
      throw asRegistryError(error, 'MANIFEST_UNKNOWN', 'MANIFEST_INVALID')
    })
    this.#remember(name, root, found)
    await this.#onManifest?.({ root, ...found }, signal).catch((error: unknown) => {
      throw asRegistryError(error, 'MANIFEST_UNKNOWN', 'MANIFEST_INVALID')
    })
    reply
      .header('docker-content-digest', found.digest)
      .header('etag', `"${found.digest}"`)
      .header('content-type', found.mediaType)
    if (request.headers['if-none-match']?.includes(`"${found.digest}"`) === true) {
      return reply.code(304).send()
    }
    reply.header('content-length', found.bytes.length)
    if (request.method === 'GET') this.#onSent?.('manifest', found.bytes.length)
    return reply.send(found.bytes)
  }

  async #blob(
    name: string,
    reference: string,
    request: FastifyRequest,
    reply: FastifyReply,
    signal: AbortSignal,
  ): Promise<FastifyReply> {
    checkDigest(reference)
    const { root } = this.#resolve(name, reference, 'BLOB_UNKNOWN')
    const late = AbortSignal.timeout(ANSWER_MS)
    const blob = await this.#images
      .blob(root, reference, AbortSignal.any([signal, late]))
      .catch((error: unknown) => {
        throw asRegistryError(error, 'BLOB_UNKNOWN', 'DIGEST_INVALID')
      })
    reply
      .header('docker-content-digest', reference)
      .header('etag', `"${reference}"`)
      .header('accept-ranges', 'bytes')
    if (request.headers['if-none-match']?.includes(`"${reference}"`) === true) {
      return reply.code(304).send()
    }
    const range = rangeOf(request, reference, blob.size)
    if (range === 'unsatisfiable') {
      reply.header('content-range', `bytes */${blob.size}`)
      return reply.code(416).send()
    }
    const { start, end } = range ?? { start: 0, end: blob.size }
    if (range !== undefined) {
      reply.code(206).header('content-range', `bytes ${start}-${end - 1}/${blob.size}`)
    }
    reply.header('content-type', 'application/octet-stream').header('content-length', end - start)
    if (request.method === 'HEAD') return reply.send(Buffer.alloc(0))
    if (this.#blobStreams >= BLOB_STREAMS_MAX) {
      throw new RegistryError(
        429,
        'TOOMANYREQUESTS',
        `${BLOB_STREAMS_MAX} blobs are being sent already; ask again in ${RETRY_AFTER_S} s`,
      )
    }
    const whole = start === 0 && end === blob.size
    const bytes = this.#blobBytes(blob, { start, end }, whole ? reference : undefined, signal)
    // The first bytes come before the headers go, so that a blob nobody has is an error and not a broken connection.
    const first = await bytes.next().catch((error: unknown) => {
      throw asRegistryError(error, 'BLOB_UNKNOWN', 'DIGEST_INVALID')
    })
    return reply.send(Readable.from(prepended(first, bytes), { objectMode: false }))
  }

  /** The bytes; if `digest` is given the last piece is only let go once all of them have been found to have it. */
  async *#blobBytes(
    blob: RegistryBlob,
    range: ByteRange,
    digest: string | undefined,
    gone: AbortSignal,
  ): AsyncGenerator<Uint8Array, void, void> {
    this.#blobStreams++
    const stalled = new AbortController()
    const stop = AbortSignal.any([gone, stalled.signal])
    const pieces = blob.stream(range, stop)[Symbol.asyncIterator]()
    const check = digest === undefined ? undefined : new DigestCheck(digest)
    let held: Uint8Array | undefined
    try {
      for (;;) {
        const timer = setTimeout(() => stalled.abort(timedOut()), ANSWER_MS)
        const next = await pieces.next().finally(() => clearTimeout(timer))
        if (next.done === true) break
        if (held !== undefined) yield this.#counted(held)
        check?.update(next.value)
        held = next.value
      }
      check?.verify(`blob ${digest}`)
      if (held !== undefined) yield this.#counted(held)
    } catch (error) {
      if (!gone.aborted) {
        this.#log.warn({ digest, reason: messageOf(error) }, 'a blob could not be sent to its end')
      }
      throw error
    } finally {
      this.#blobStreams--
      await pieces.return?.()
    }
  }

  #counted(piece: Uint8Array): Uint8Array {
    this.#onSent?.('blob', piece.length)
    return piece
  }

  async #tags(
    name: string,
    reference: string,
    { n, last }: { n?: string; last?: string },
    reply: FastifyReply,
    gone: AbortSignal,
  ): Promise<FastifyReply> {
    if (reference !== 'list') throw unsupported('GET', `/v2/${name}/tags/${reference}`)
    const { root } = this.#resolve(name, 'latest', 'NAME_UNKNOWN')
    const signal = AbortSignal.any([gone, AbortSignal.timeout(ANSWER_MS)])
    const all = await this.#images.tags(root, signal).catch((error: unknown) => {
      throw asRegistryError(error, 'NAME_UNKNOWN', 'NAME_INVALID')
    })
    const after = last === undefined ? all : all.filter((tag) => tag > last)
    const tags = n !== undefined && /^\d{1,6}$/.test(n) ? after.slice(0, Number(n)) : after
    const next = tags.at(-1)
    if (next !== undefined && tags.length < after.length) {
      const query = new URLSearchParams({ n: String(n), last: next })
      reply.header('link', `</v2/${name}/tags/list?${query.toString()}>; rel="next"`)
    }
    return reply.send({ name, tags })
  }

  #resolve(
    name: string,
    reference: string,
    unknown: OciErrorCode,
  ): { root: CID; selector: string } {
    checkName(name)
    if (reference.includes(':')) checkDigest(reference)
    const found = resolved(name, reference)
    if (found !== undefined) return found
    const root = this.#roots.get(`${name}@${reference}`)
    if (root !== undefined) return { root, selector: reference }
    throw new RegistryError(
      404,
      unknown,
      `${name} holds no CID and ${reference} is not known under it; pull ${IMAGE_HOST}/<cid> or ${IMAGE_HOST}/${name}:<cid>`,
    )
  }

  #remember(
    name: string,
    root: CID,
    { bytes, digest }: { bytes: Uint8Array; digest: Digest },
  ): void {
    if (resolved(name, 'latest') !== undefined) return
    const document = parseManifest(bytes, `manifest ${digest}`)
    const parts =
      document.kind === 'index' ? document.manifests : [document.config, ...document.layers]
    for (const known of [digest, ...parts.map((part) => part.digest)]) {
      const key = `${name}@${known}`
      this.#roots.delete(key)
      this.#roots.set(key, root)
    }
    for (const oldest of this.#roots.keys()) {
      if (this.#roots.size <= REMEMBERED_DIGESTS_MAX) break
      this.#roots.delete(oldest)
    }
  }

  #fail(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
    const failure = asRegistryError(error, 'UNKNOWN', 'UNSUPPORTED')
    const facts = { method: request.method, url: request.url.slice(0, 400), status: failure.status }
    if (failure.status >= 500) this.#log.warn(facts, failure.message)
    else this.#log.debug(facts, failure.message)
    if (failure.status === 405) reply.header('allow', 'GET, HEAD')
    if (failure.status === 503 || failure.status === 504 || failure.status === 429) {
      reply.header('retry-after', RETRY_AFTER_S)
    }
    for (const name of ['content-length', 'content-range', 'etag']) reply.removeHeader(name)
    // To a HEAD there is no body, and clients show this: containerd begins each pull with one.
    if (failure.status === 403) reply.raw.statusMessage = reasonPhrase(failure.message)
    return reply
      .code(failure.status)
      .type('application/json')
      .send({ errors: [{ code: failure.ociCode, message: failure.message, detail: null }] })
  }
}

/** A sentence as RFC 9112, section 4 allows it in a status line, and no longer than a line. */
function reasonPhrase(sentence: string): string {
  return sentence.replaceAll(/[^ -~]+/g, ' ').slice(0, REASON_CHARS_MAX)
}

function referrers(name: string, digest: string, reply: FastifyReply): FastifyReply {
  checkName(name)
  checkDigest(digest)
  const empty = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [] }
  return reply.type(MEDIA_TYPES.ociIndex).send(Buffer.from(JSON.stringify(empty)))
}

/** The part of a blob that a request asks for; undefined for all of it. Several parts at once are answered with all (RFC 9110, 14.2). */
function rangeOf(
  { headers }: FastifyRequest,
  digest: string,
  size: number,
): ByteRange | 'unsatisfiable' | undefined {
  const condition = headers['if-range']
  if (headers.range === undefined || (condition !== undefined && condition !== `"${digest}"`)) {
    return undefined
  }
  const ranges = parseRange(size, headers.range, { combine: true })
  if (ranges === -1) return 'unsatisfiable'
  if (ranges === -2 || ranges.type !== 'bytes' || ranges.length !== 1) return undefined
  const [range] = ranges
  return range && { start: range.start, end: range.end + 1 }
}

function resolved(name: string, reference: string): { root: CID; selector: string } | undefined {
  try {
    return resolveReference(name, reference)
  } catch (error) {
    throw asRegistryError(error, 'NAME_UNKNOWN', 'NAME_INVALID')
  }
}

function checkName(name: string): void {
  try {
    checkRepository(name)
  } catch (error) {
    throw asRegistryError(error, 'NAME_UNKNOWN', 'NAME_INVALID')
  }
}

function checkDigest(text: string): void {
  try {
    parseDigest(text)
  } catch (error) {
    throw asRegistryError(error, 'BLOB_UNKNOWN', 'DIGEST_INVALID')
  }
}

const STATUS: Readonly<Partial<Record<ErrorCode, number>>> = {
  INVALID_ARGUMENT: 400,
  FAILED_PRECONDITION: 400,
  UNIMPLEMENTED: 400,
  RESOURCE_EXHAUSTED: 400,
  PERMISSION_DENIED: 403,
  NOT_FOUND: 404,
  DATA_LOSS: 502,
  UNAVAILABLE: 503,
  CANCELLED: 503,
  DEADLINE_EXCEEDED: 504,
}

/** How a failure is told to an OCI client: `missing` if it is a 404, `invalid` if the content is to blame. */
function asRegistryError(
  error: unknown,
  missing: OciErrorCode,
  invalid: OciErrorCode,
): RegistryError {
  if (error instanceof RegistryError) return error
  if (!(error instanceof CodedError)) {
    if (isTimeout(error)) {
      return new RegistryError(504, 'UNAVAILABLE', 'nobody on IPFS answered in time', error)
    }
    return new RegistryError(500, 'UNKNOWN', messageOf(error), error)
  }
  const status = STATUS[error.code] ?? 500
  if (status === 404) return new RegistryError(404, missing, error.message, error)
  if (status === 403) return new RegistryError(403, 'DENIED', error.message, error)
  if (status < 500) return new RegistryError(status, invalid, error.message, error)
  return new RegistryError(status, 'UNAVAILABLE', error.message, error)
}

function unsupported(method: string, url: string): RegistryError {
  if (method === 'GET' || method === 'HEAD') {
    const message = `${url.slice(0, 200)} is no endpoint of a registry`
    return new RegistryError(404, 'UNSUPPORTED', message)
  }
  return new RegistryError(
    405,
    'UNSUPPORTED',
    `${method} ${url.slice(0, 200)}: this registry is read-only; put images on IPFS with ipdr push`,
  )
}

/** Aborts when the client has left or has its answer. */
function endOf(reply: FastifyReply): AbortSignal {
  const ended = new AbortController()
  reply.raw.once('close', () => ended.abort(new ImageError('CANCELLED', 'the client has left')))
  return ended.signal
}

async function* prepended(
  first: IteratorResult<Uint8Array, void>,
  rest: AsyncGenerator<Uint8Array, void, void>,
): AsyncGenerator<Uint8Array, void, void> {
  try {
    if (first.done !== true) yield first.value
    yield* rest
  } finally {
    await rest.return()
  }
}

function timedOut(): DOMException {
  return new DOMException(`no bytes for ${ANSWER_MS} ms`, 'TimeoutError')
}

function isTimeout(error: unknown): boolean {
  return error instanceof Error && error.name === 'TimeoutError'
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
