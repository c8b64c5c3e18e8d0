import { setTimeout } from 'node:timers/promises'
import { z } from 'zod'
import type { ByteRange } from '../../snapshotter/byte-range.ts'
import { CodedError, RegistryError } from '../../snapshotter/errors.ts'
import type { RepositoryScope } from '../../snapshotter/image-registries.ts'
import { MEDIA_TYPES } from '../../snapshotter/oci/descriptor.ts'
import { type Digest, digestOf, isDigest, verifyDigest } from '../../snapshotter/oci/digest.ts'
import { MANIFEST_BYTES_MAX } from '../../snapshotter/oci/manifest.ts'
import type { RegistryPlace } from '../../snapshotter/oci/registry-reference.ts'
import { parseChallenges } from './challenge.ts'
import type { FindLogins } from './find-logins.ts'
import { type HttpAnswer, type RegistryHost, RegistryHttp } from './registry-http.ts'
import type { RegistryLogin } from './registry-login.ts'
import { RegistrySession } from './registry-session.ts'

/** How often a request is sent before its failure is passed on. 3: a lost connection and a restarted server. */
const ATTEMPTS = 3

/** Before the second attempt, in ms; twice that before the third. */
const PAUSE_MS = 200

/** Sessions kept. 1,000: more repositories than a node has images. */
const SESSIONS_MAX = 1_000

/** How long a registry's pointer to a blob store is used, in ms. 5 min: signed addresses live for ten and more. */
const STORE_KEPT_MS = 300_000

/** What is read and thrown away before a part, where a registry sends only whole blobs, in bytes. 64 MiB: 5 s at 100 Mbit/s. */
const SKIPPED_BYTES_MAX = 64 * 1024 * 1024

/** A list of tags, in bytes. 4 MiB: some hundred thousand. */
const TAGS_BYTES_MAX = 4 * 1024 * 1024

/** Kinds of manifests we read, in the order in which we like them. */
const MANIFEST_TYPES = [
  MEDIA_TYPES.ociIndex,
  MEDIA_TYPES.dockerIndex,
  MEDIA_TYPES.ociManifest,
  MEDIA_TYPES.dockerManifest,
].join(', ')

/** OCI distribution-spec, "Listing Tags". */
const tagsSchema = z.object({ tags: z.array(z.string().max(128)).nullish() })

type Collaborators = {
  readonly logins: FindLogins
  /** Told of each piece that arrived. */
  readonly onBytes?: (bytes: number) => void
  /** Told of each login that a registry did not take; `origin` says where it is from. */
  readonly onRefused?: (origin: string, place: RegistryPlace) => void
}

/** Reads manifests and blobs from registries (OCI distribution-spec), with the credentials that fit. */
export class RegistryClient implements AsyncDisposable {
  readonly #http: RegistryHttp
  readonly #collaborators: Collaborators
  /** By repository and login, the least recently used first. */
  readonly #sessions = new Map<string, RegistrySession>()
  /** Where blobs are that a registry does not send itself. */
  readonly #stores = new Map<string, { readonly url: URL; readonly untilMs: number }>()
  /** The login that was let in last, by repository and namespaces: it is tried first. */
  readonly #entered = new Map<string, string>()

  constructor(
    { hosts }: { readonly hosts: Readonly<Record<string, RegistryHost>> },
    collaborators: Collaborators,
  ) {
    this.#http = new RegistryHttp(hosts)
    this.#collaborators = collaborators
  }

  /**
   * A manifest or index by tag or digest, checked against a digest. Rejects with RegistryError: NOT_FOUND, PERMISSION_DENIED (no
   * credentials that the registry takes), UNAVAILABLE, RESOURCE_EXHAUSTED; with ImageError DATA_LOSS if it is another one.
   */
  async manifest(
    scope: RepositoryScope,
    selector: string,
    signal: AbortSignal,
  ): Promise<{ bytes: Uint8Array; digest: Digest }> {
    const what = `manifest ${selector} of ${scope.host}/${scope.repository}`
    const path = `manifests/${selector}`
    const bytes = await retrying(signal, async () => {
      const answer = await this.#ask(scope, path, { accept: MANIFEST_TYPES }, signal)
      if (answer.status === 200) return this.#read(answer, MANIFEST_BYTES_MAX, what)
      throw await unexpected(answer, what)
    })
    if (isDigest(selector)) verifyDigest(bytes, selector, what)
    return { bytes, digest: isDigest(selector) ? selector : digestOf(bytes) }
  }

  /** Tags of the repository, as many as the registry names at once. Rejects as `manifest`; INVALID_ARGUMENT if it sends no list. */
  async tags(scope: RepositoryScope, signal: AbortSignal): Promise<readonly string[]> {
    const what = `list of tags of ${scope.host}/${scope.repository}`
    const bytes = await retrying(signal, async () => {
      const answer = await this.#ask(scope, 'tags/list', {}, signal)
      if (answer.status === 200) return this.#read(answer, TAGS_BYTES_MAX, what)
      throw await unexpected(answer, what)
    })
    return parseTags(bytes, what)
  }

  /** A blob that is small, whole and checked. Rejects as `manifest`; RESOURCE_EXHAUSTED if it has more than `bytesMax`. */
  async smallBlob(
    scope: RepositoryScope,
    digest: Digest,
    bytesMax: number,
    signal: AbortSignal,
  ): Promise<Uint8Array> {
    const what = blobName(scope, digest)
    const bytes = await retrying(signal, async () => {
      const answer = await this.#ask(scope, `blobs/${digest}`, {}, signal)
      if (answer.status === 200) return this.#read(answer, bytesMax, what)
      throw await unexpected(answer, what)
    })
    verifyDigest(bytes, digest, what)
    return bytes
  }

  /**
   * The bytes of a blob as they come; who reads them checks the digest. Where the connection breaks, it goes on behind the last
   * byte that arrived. Rejects as `manifest`.
   */
  async *streamBlob(
    scope: RepositoryScope,
    digest: Digest,
    signal: AbortSignal,
  ): AsyncGenerator<Buffer, void> {
    const what = blobName(scope, digest)
    let [received, failures] = [0, 0]
    for (;;) {
      try {
        const headers: Record<string, string> =
          received === 0 ? {} : { range: `bytes=${received}-` }
        const answer = await this.#ask(scope, `blobs/${digest}`, headers, signal)
        if (answer.status === 416 && received > 0) {
          await answer.release()
          return
        }
        if (answer.status !== 200 && answer.status !== 206) throw await unexpected(answer, what)
        let skip = answer.status === 200 ? received : 0
        for await (const piece of answer.body) {
          const fresh = piece.subarray(skip)
          skip -= piece.length - fresh.length
          if (fresh.length === 0) continue
          received += fresh.length
          failures = 0
          this.#collaborators.onBytes?.(fresh.length)
          yield fresh
        }
        return
      } catch (error) {
        if (!isPassing(error) || ++failures === ATTEMPTS) throw error
        await pause(failures, error, signal)
      }
    }
  }

  /**
   * Bytes `range` of a blob, as many as asked for and not checked. Rejects as `manifest`; with DATA_LOSS if the blob there has another
   * size, UNIMPLEMENTED if the registry sends no parts of blobs and too much lies before this one.
   */
  async readRange(
    scope: RepositoryScope,
    blob: { readonly digest: Digest; readonly size: number },
    range: ByteRange,
    signal: AbortSignal,
  ): Promise<Uint8Array> {
    const what = blobName(scope, blob.digest)
    const headers = { range: `bytes=${range.start}-${range.end - 1}` }
    return retrying(signal, async () => {
      const answer = await this.#askForPart(scope, blob.digest, headers, signal)
      if (answer.status === 416) {
        await answer.release()
        throw new RegistryError(
          'DATA_LOSS',
          `${what} ends before byte ${range.end}, its manifest says it has ${blob.size}`,
        )
      }
      if (answer.status !== 200 && answer.status !== 206) throw await unexpected(answer, what)
      const skipped = answer.status === 200 ? range.start : 0
      const problem = answer.status === 206 ? partProblem(answer, range, blob.size) : undefined
      if (problem !== undefined || skipped > SKIPPED_BYTES_MAX) {
        await answer.release()
        throw problem === undefined
          ? new RegistryError(
              'UNIMPLEMENTED',
              `${answer.url.host} sends blobs only whole, and ${skipped} bytes lie before those wanted of ${what}`,
            )
          : new RegistryError('DATA_LOSS', `${what}: ${problem}`)
      }
      return this.#readPart(answer, { skipped, length: range.end - range.start }, what)
    })
  }

  /** Breaks off what is still on its way. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#http[Symbol.asyncDispose]()
  }

  /** Asks where the registry sent us last for this blob, as long as that is of use: a blob store, more often than not. */
  async #askForPart(
    scope: RepositoryScope,
    digest: Digest,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<HttpAnswer> {
    const key = JSON.stringify([scope.host, scope.repository, digest, ...scope.namespaces])
    const known = this.#stores.get(key)
    if (known !== undefined && performance.now() < known.untilMs) {
      // Whatever is wrong with it, the registry may know better by now.
      this.#stores.delete(key)
      const answer = await this.#http.send(scope.host, known.url, { headers, signal })
      if (answer.status === 200 || answer.status === 206) {
        this.#stores.set(key, known)
        return answer
      }
      await answer.release()
    }
    const answer = await this.#ask(scope, `blobs/${digest}`, headers, signal)
    const isPart = answer.status === 206 || answer.status === 200
    if (isPart && answer.isElsewhere) {
      remember(this.#stores, key, { url: answer.url, untilMs: performance.now() + STORE_KEPT_MS })
    }
    return answer
  }

  async #readPart(
    { body }: HttpAnswer,
    { skipped, length }: { readonly skipped: number; readonly length: number },
    what: string,
  ): Promise<Uint8Array> {
    const part = Buffer.allocUnsafeSlow(length)
    let [before, filled] = [skipped, 0]
    for await (const piece of body) {
      this.#collaborators.onBytes?.(piece.length)
      const wanted = piece.subarray(before, before + length - filled)
      before = Math.max(0, before - piece.length)
      part.set(wanted, filled)
      filled += wanted.length
      // The rest of a blob that comes whole: the connection is given up.
      if (filled === length) break
    }
    if (filled === length) return part
    throw new RegistryError('UNAVAILABLE', `${what}: ${filled} of ${length} bytes came`)
  }

  /** Asks with one login after the other until one is let in. Any answer but 401 and 403 is one for the caller. */
  async #ask(
    scope: RepositoryScope,
    path: string,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<HttpAnswer> {
    const { host, repository, namespaces } = scope
    const base = this.#http.baseUrl(host)
    const url = new URL(`${base.pathname.replace(/\/$/, '')}/v2/${repository}/${path}`, base)
    const key = JSON.stringify([host, repository, ...namespaces.toSorted()])
    const shown = new Map<string, RegistryLogin>()
    // What was known may be outdated: sources are asked a second time whether they know better by now.
    for (const fresh of [false, true]) {
      const found = await this.#collaborators.logins.loginsFor(scope, { namespaces, fresh, signal })
      const logins = found.filter(({ fingerprint }) => !shown.has(fingerprint))
      if (fresh && logins.length === 0) break
      const last = this.#entered.get(key)
      const first = logins.filter(({ fingerprint }) => fingerprint === last)
      for (const login of [
        ...first,
        ...logins.filter((each) => !first.includes(each)),
        undefined,
      ]) {
        const answer = await this.#askAs(login, scope, url, headers, signal)
        if (answer !== undefined) {
          if (login === undefined) this.#entered.delete(key)
          else remember(this.#entered, key, login.fingerprint)
          return answer
        }
        if (login === undefined) continue
        shown.set(login.fingerprint, login)
        this.#collaborators.onRefused?.(login.origin, scope)
      }
    }
    throw refused(scope, [...shown.values()])
  }

  /** Undefined if the registry does not let this login in. */
  async #askAs(
    login: RegistryLogin | undefined,
    place: RegistryPlace,
    url: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<HttpAnswer | undefined> {
    const { host } = place
    const session = this.#session(place, login)
    let authorization = await session.authorization(signal)
    // Asked as before; asked as it wants to be; and once more where a token had ended before its time.
    for (let attempt = 0; attempt < 3; attempt++) {
      const answer = await this.#http.send(host, url, { headers, authorization, signal })
      if (answer.status !== 401 && answer.status !== 403) return answer
      await answer.release()
      if (answer.isElsewhere) {
        throw new RegistryError(
          'UNAVAILABLE',
          `the blob store ${answer.url.host} of registry ${host} answers HTTP ${answer.status}`,
          { host, status: answer.status },
        )
      }
      if (answer.status === 403) return undefined
      const challenges = parseChallenges(answer.headers['www-authenticate'], `registry ${host}`)
      authorization = await session.answer(challenges, authorization, signal)
      if (authorization === undefined) return undefined
    }
    return undefined
  }

  #session(place: RegistryPlace, login: RegistryLogin | undefined): RegistrySession {
    const key = JSON.stringify([place.host, place.repository, login?.fingerprint ?? ''])
    const session = this.#sessions.get(key) ?? new RegistrySession(place, login, this.#http)
    remember(this.#sessions, key, session)
    return session
  }

  async #read({ body }: HttpAnswer, bytesMax: number, what: string): Promise<Buffer> {
    const pieces: Buffer[] = []
    let bytes = 0
    for await (const piece of body) {
      bytes += piece.length
      if (bytes > bytesMax) {
        throw new RegistryError(
          'RESOURCE_EXHAUSTED',
          `${what} has more than ${bytesMax} bytes, the limit for its kind`,
          { bytesMax },
        )
      }
      this.#collaborators.onBytes?.(piece.length)
      pieces.push(piece)
    }
    return Buffer.concat(pieces)
  }
}

function parseTags(bytes: Uint8Array, what: string): readonly string[] {
  try {
    return tagsSchema.parse(JSON.parse(Buffer.from(bytes).toString())).tags ?? []
  } catch (cause) {
    throw new RegistryError('INVALID_ARGUMENT', `the ${what} is none`, {}, cause)
  }
}

function remember<T>(map: Map<string, T>, key: string, value: T): void {
  map.delete(key)
  map.set(key, value)
  for (const oldest of map.keys()) {
    if (map.size <= SESSIONS_MAX) break
    map.delete(oldest)
  }
}

function blobName({ host, repository }: RegistryPlace, digest: Digest): string {
  return `blob ${digest} of ${host}/${repository}`
}

/** Whether the same request may succeed a moment later. */
function isPassing(error: unknown): boolean {
  return error instanceof RegistryError && error.code === 'UNAVAILABLE'
}

async function pause(failures: number, error: unknown, signal: AbortSignal): Promise<void> {
  const asked = error instanceof CodedError ? error.facts['retryAfterMs'] : undefined
  const ms = typeof asked === 'number' ? asked : PAUSE_MS * 2 ** (failures - 1)
  await setTimeout(ms, undefined, { signal })
}

async function retrying<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  for (let failures = 1; ; failures++) {
    try {
      return await work()
    } catch (error) {
      if (!isPassing(error) || failures === ATTEMPTS) throw error
      await pause(failures, error, signal)
    }
  }
}

/** What is wrong with a part; undefined if it is the one that was asked for (RFC 9110, section 14.4). */
function partProblem({ headers }: HttpAnswer, range: ByteRange, size: number): string | undefined {
  const header = headers['content-range'] ?? ''
  const [, start, end, whole] = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16}|\*)$/.exec(header) ?? []
  if (Number(start) !== range.start || Number(end) !== range.end - 1) {
    return `bytes ${range.start} to ${range.end - 1} were asked for, '${header.slice(0, 80)}' came`
  }
  if (whole === '*' || Number(whole) === size) return undefined
  return `it has ${whole} bytes there, its manifest says ${size}`
}

async function unexpected(answer: HttpAnswer, what: string): Promise<RegistryError> {
  await answer.release()
  if (answer.status === 404) return new RegistryError('NOT_FOUND', `there is no ${what}`)
  const message = `${answer.url.host} answers HTTP ${answer.status} for ${what}`
  return new RegistryError('UNAVAILABLE', message, { status: answer.status })
}

function refused(
  { host, repository }: RegistryPlace,
  shown: readonly RegistryLogin[],
): RegistryError {
  const origins = shown.map(({ origin }) => origin).slice(0, 5)
  const why =
    origins.length === 0
      ? 'it wants credentials, and none were found for it'
      : `it does not take the credentials of ${origins.join(', nor of ')}: renew them`
  return new RegistryError(
    'PERMISSION_DENIED',
    `registry ${host} does not let us read ${repository}: ${why}`,
    { host, repository },
  )
}
