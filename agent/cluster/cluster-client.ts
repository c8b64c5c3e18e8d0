import { hash } from 'node:crypto'
import { Agent } from 'undici'
import type { ClusterPeers, SharedFind } from '../../snapshotter/cluster-peers.ts'
import type { Log } from '../../snapshotter/log.ts'
import { type ClusterTls, connectOptions } from './cluster-tls.ts'
import type { ClusterNames } from './own-address.ts'
import { type RankedName, rankedName, rankHomes } from './rank-homes.ts'
import { ASKED_BY_HEADER, NODE_HEADER, nodesNamed } from './who-asked.ts'

/** How long a peer has to say whether it knows, in ms. 500: a hand-shake and a round trip on a network of 100 ms. */
const ANSWER_MS = 500

/** And one of them to send it, in ms. 20 s: the largest index at 6 MB/s; longer, and the layer itself is not much more. */
const BODY_MS = 20_000

/** Bytes of an answer. 128 MiB: the largest side index, and far more than a list. */
const BODY_BYTES_MAX = 128 * 1024 ** 2

/** A peer that could not be asked is left alone for so long, in ms. 30 s: a node that boots, and a pull does not wait for one that is off. */
const REST_MS = 30_000

/**
 * Peers asked first, then twice as many, and so on: when those asked do not know, or have not said so for `HEDGE_MS`. 4: who knows is asked
 * by all others, in the same order, so the fewer the better; and 100 ms are a round trip to the other end of the world.
 */
const ASKED_FIRST = 4
const HEDGE_MS = 100

/** Peers asked in all. 28: three rounds, 4, 8 and 16. */
const ASKED_MAX = 28

type Options = { readonly answerMs?: number; readonly restMs?: number }

/** Asks the agents of other nodes, a few at a time and not all of many, over TLS by which both sides know each other. */
export class ClusterClient implements ClusterPeers, AsyncDisposable {
  #peers: readonly RankedName[] = []
  #self: string | undefined
  readonly #http: Agent
  readonly #log: Pick<Log, 'warn'>
  readonly #answerMs: number
  readonly #restMs: number
  readonly #restsUntil = new Map<string, number>()

  constructor(
    names: ClusterNames,
    { tls, log }: { readonly tls: ClusterTls; readonly log: Pick<Log, 'warn'> },
    { answerMs = ANSWER_MS, restMs = REST_MS }: Options = {},
  ) {
    this.follow(names)
    this.#log = log
    this.#answerMs = answerMs
    this.#restMs = restMs
    this.#http = new Agent({
      connect: connectOptions(tls, answerMs),
      headersTimeout: 0,
      bodyTimeout: BODY_MS,
    })
  }

  /** From now on the cluster is these. */
  follow({ self, others }: ClusterNames): void {
    this.#self = self
    this.#peers = others.map((url) => rankedName(url.replace(/\/$/, '')))
    const known = new Set(this.#peers.map(({ name }) => name))
    for (const peer of this.#restsUntil.keys()) {
      if (!known.has(peer)) this.#restsUntil.delete(peer)
    }
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

  /**
   * The first answer that is one. What is asked for decides who is asked first, the same of all nodes, so that these can name others who
   * asked before and may know by now.
   */
  async #find(path: string, signal: AbortSignal): Promise<SharedFind | undefined> {
    signal.throwIfAborted()
    const over = new AbortController()
    const asking = AbortSignal.any([signal, over.signal])
    const found = Promise.withResolvers<SharedFind | undefined>()
    const now = performance.now()
    const awake = this.#peers.filter(({ name }) => (this.#restsUntil.get(name) ?? 0) <= now)
    // In this order, each until it is asked.
    const left = new Set(rankHomes(hash('sha256', path, 'buffer'), awake).map(({ name }) => name))
    let [round, asked, underWay] = [ASKED_FIRST, 0, 0]
    let timer: NodeJS.Timeout | undefined
    const ask = async (peer: string): Promise<void> => {
      if (asked >= ASKED_MAX || asking.aborted || !left.delete(peer)) return
      asked++
      underWay++
      const bytes = await this.#ask(peer, path, {
        signal: asking,
        // Who sends it is waited for: others would only send it as well.
        onKnows: () => clearTimeout(timer),
        onNamed: (nodes) => {
          for (const node of nodes) void ask(node)
        },
      })
      underWay--
      if (bytes !== undefined) found.resolve({ bytes, peer: `peer ${peer}` })
      else if (underWay === 0) askMore()
    }
    const askMore = (): void => {
      clearTimeout(timer)
      for (const peer of [...left].slice(0, round)) void ask(peer)
      round *= 2
      if (underWay === 0) found.resolve(undefined)
      else timer = setTimeout(askMore, HEDGE_MS)
    }
    askMore()
    try {
      const first = await found.promise
      if (first === undefined) signal.throwIfAborted()
      return first
    } finally {
      // What the others still send is not needed, and nobody else is asked.
      over.abort()
      clearTimeout(timer)
    }
  }

  /** Undefined if it does not know, or cannot be asked. `onKnows` is called before it sends, `onNamed` with who else asked it. */
  async #ask(
    peer: string,
    path: string,
    {
      signal,
      onKnows,
      onNamed,
    }: {
      readonly signal: AbortSignal
      readonly onKnows: () => void
      readonly onNamed: (nodes: readonly string[]) => void
    },
  ): Promise<Uint8Array | undefined> {
    const late = new AbortController()
    const timer = setTimeout(
      () => late.abort(new Error(`no answer in ${this.#answerMs} ms`)),
      this.#answerMs,
    )
    try {
      const { statusCode, headers, body } = await this.#http.request({
        origin: peer,
        path,
        method: 'GET',
        ...(this.#self !== undefined && { headers: { [NODE_HEADER]: this.#self } }),
        signal: AbortSignal.any([signal, late.signal]),
      })
      clearTimeout(timer)
      this.#restsUntil.delete(peer)
      if (statusCode === 200) {
        onKnows()
        return await allOf(body, peer)
      }
      await body.dump()
      if (statusCode !== 404) throw new Error(`it answers ${statusCode}`)
      onNamed(nodesNamed(headers[ASKED_BY_HEADER]))
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
