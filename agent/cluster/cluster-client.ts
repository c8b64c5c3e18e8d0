import { Agent } from 'undici'
import type { ClusterPeers, SharedFind } from '../../snapshotter/cluster-peers.ts'
import type { Log } from '../../snapshotter/log.ts'
import { type ClusterTls, connectOptions } from './cluster-tls.ts'

/** How long all peers have to say whether they know, in ms. 500: a hand-shake and a round trip on a network of 100 ms. */
const ANSWER_MS = 500

/** And one of them to send it, in ms. 20 s: the largest index at 6 MB/s; longer, and the layer itself is not much more. */
const BODY_MS = 20_000

/** Bytes of an answer. 128 MiB: the largest side index, and far more than a list. */
const BODY_BYTES_MAX = 128 * 1024 ** 2

/** A peer that could not be asked is left alone for so long, in ms. 30 s: a node that boots, and a pull does not wait for one that is off. */
const REST_MS = 30_000

type Options = { readonly answerMs?: number; readonly restMs?: number }

/** Asks the agents of other nodes, all at once, over TLS by which both sides know each other. */
export class ClusterClient implements ClusterPeers, AsyncDisposable {
  readonly #peers: readonly string[]
  readonly #http: Agent
  readonly #log: Pick<Log, 'warn'>
  readonly #answerMs: number
  readonly #restMs: number
  readonly #restsUntil = new Map<string, number>()

  constructor(
    peers: readonly string[],
    { tls, log }: { readonly tls: ClusterTls; readonly log: Pick<Log, 'warn'> },
    { answerMs = ANSWER_MS, restMs = REST_MS }: Options = {},
  ) {
    this.#peers = peers.map((url) => url.replace(/\/$/, ''))
    this.#log = log
    this.#answerMs = answerMs
    this.#restMs = restMs
    this.#http = new Agent({
      connect: connectOptions(tls, answerMs),
      headersTimeout: 0,
      bodyTimeout: BODY_MS,
    })
  }

  sideIndex(blobCid: string, signal: AbortSignal): Promise<SharedFind | undefined> {
    return this.#find(`/v1/indexes/${blobCid}`, signal)
  }

  prefetchList(layerChainId: string, signal: AbortSignal): Promise<SharedFind | undefined> {
    return this.#find(`/v1/prefetch/${layerChainId}`, signal)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#http.destroy()
  }

  /** The first answer that is one. */
  async #find(path: string, signal: AbortSignal): Promise<SharedFind | undefined> {
    const found = new AbortController()
    const now = performance.now()
    const awake = this.#peers.filter((peer) => (this.#restsUntil.get(peer) ?? 0) <= now)
    const asked = awake.map(async (peer) => {
      const bytes = await this.#ask(peer, path, AbortSignal.any([signal, found.signal]))
      if (bytes === undefined) throw new Error('it does not know')
      return { bytes, peer: `peer ${peer}` }
    })
    try {
      return await Promise.any(asked)
    } catch {
      signal.throwIfAborted()
      return undefined
    } finally {
      // What the others still send is not needed.
      found.abort()
    }
  }

  /** Undefined if it does not know, or cannot be asked. */
  async #ask(peer: string, path: string, signal: AbortSignal): Promise<Uint8Array | undefined> {
    const late = new AbortController()
    const timer = setTimeout(
      () => late.abort(new Error(`no answer in ${this.#answerMs} ms`)),
      this.#answerMs,
    )
    try {
      const { statusCode, body } = await this.#http.request({
        origin: peer,
        path,
        method: 'GET',
        signal: AbortSignal.any([signal, late.signal]),
      })
      clearTimeout(timer)
      this.#restsUntil.delete(peer)
      if (statusCode === 200) return await allOf(body, peer)
      await body.dump()
      if (statusCode !== 404) throw new Error(`it answers ${statusCode}`)
      return undefined
    } catch (error) {
      if (signal.aborted) return undefined
      this.#restsUntil.set(peer, performance.now() + this.#restMs)
      const reason = late.signal.aborted ? late.signal.reason : error
      const why = reason instanceof Error ? reason.message : String(reason)
      this.#log.warn(
        { peer, reason: why },
        `peer ${peer} cannot be asked what it knows of a layer, and is left alone for ${this.#restMs / 1000} s: ${why}`,
      )
      return undefined
    } finally {
      clearTimeout(timer)
    }
  }
}

async function allOf(body: AsyncIterable<Uint8Array>, peer: string): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  let bytes = 0
  for await (const part of body) {
    bytes += part.length
    if (bytes > BODY_BYTES_MAX) {
      throw new Error(`${peer} sends more than ${BODY_BYTES_MAX} bytes`)
    }
    parts.push(part)
  }
  return Buffer.concat(parts)
}
