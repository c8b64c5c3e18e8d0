import type { CID } from 'multiformats/cid'
import { Pool } from 'undici'
import { BlockError } from '../../snapshotter/errors.ts'
import type { Log } from '../../snapshotter/log.ts'
import type { BlockErrand, BlockProvider, ProviderHealth } from '../ipfs/block-provider.ts'
import { hedgeMs } from '../ipfs/block-race.ts'
import { GatewayClient } from '../ipfs/gateway-client.ts'
import { type ClusterTls, connectOptions } from './cluster-tls.ts'

/** TCP's and TLS' hand-shakes, in ms. 5 s: three lost packets, or a node that a hundred others connect to; the next one is asked meanwhile. */
const CONNECT_MS = 5_000

/** Between two signs of life, and for a whole block, in ms: as for gateways. */
const TIMES = { stallMs: 10_000, blockMs: 30_000 }

/**
 * An agent says at once that it works on a block; one that says nothing for three times as long as blocks of it usually take, within these
 * bounds in ms, is overtaken and left alone. At least 3 s: twenty agents that started an image on two cores paused for 1 s and more, and with
 * 1 s every block left the origin twice. At most 6: a fifth of a page fault's deadline.
 */
const SILENCE = { minMs: 3_000, maxMs: 6_000 } as const

type Collaborators = {
  readonly tls: ClusterTls
  /** How many it may be asked over at once. */
  readonly connections: number
  readonly keep: (cid: CID, block: Uint8Array) => void
  readonly log: Pick<Log, 'warn'>
}

/** Another agent of the cluster as a place that blocks come from: it has them, or fetches them for all of us. */
export class ClusterPeer implements BlockProvider, AsyncDisposable {
  readonly kind = 'cluster'
  readonly name: string
  readonly hedge: typeof SILENCE = SILENCE
  readonly #client: GatewayClient
  /** Not behind the blocks that are waited for. */
  readonly #urgent: Pool
  readonly #keep: (cid: CID, block: Uint8Array) => void
  readonly #log: Pick<Log, 'warn'>
  /** Told of every sign of life: some of them wait for a connection that others still use. */
  readonly #waiting = new Set<BlockErrand>()
  #heardMs = 0
  #isTold = false
  /** It is no peer any more, and closed when nothing is on its way. */
  #left: PromiseWithResolvers<void> | undefined

  /** `keep` is shown every block that came from it, and may not hold on to the bytes. */
  constructor(url: string, { tls, connections, keep, log }: Collaborators) {
    this.name = `peer ${url}`
    const connect = connectOptions(tls, CONNECT_MS)
    this.#client = new GatewayClient(url, TIMES, { connect, connections })
    this.#urgent = new Pool(new URL(url).origin, { connections: 1, connect })
    this.#keep = keep
    this.#log = log
  }

  get health(): ProviderHealth {
    return this.#client.health
  }

  async get(cid: CID, signal: AbortSignal, errand: BlockErrand = NOBODYS): Promise<Uint8Array> {
    if (this.#left !== undefined) throw new BlockError('UNAVAILABLE', `${this.name} has left`)
    const startedMs = performance.now()
    const heard = (): void => this.#heard()
    const waiting = { ...errand, isWorking: () => errand.isWorking() }
    this.#waiting.add(waiting)
    const escalate = (): void => void this.#escalate(cid)
    errand.escalated.addEventListener('abort', escalate, { once: true })
    try {
      const told = { ...errand, isWorking: heard, isSending: heard }
      const block = await this.#client.get(cid, signal, told)
      this.#isTold = false
      this.#keep(cid, block)
      return block
    } catch (error) {
      if (!(error instanceof BlockError)) throw error
      if (signal.aborted) this.#overtaken(startedMs)
      const message = error.message.replace(/^gateway \S+/, this.name)
      if (this.health.standing === 1 && !this.#isTold) {
        this.#isTold = true
        const reason = signal.aborted ? 'it gave no sign of life' : message
        this.#log.warn({ peer: this.name, reason }, LEFT_ALONE)
      }
      throw new BlockError(error.code, message, error.facts, error)
    } finally {
      this.#waiting.delete(waiting)
      this.#leaveIfIdle()
      errand.escalated.removeEventListener('abort', escalate)
    }
  }

  /** Takes no more requests, and closes when those on their way are done, which they are in 30 s at most. */
  async leave(): Promise<void> {
    this.#left ??= Promise.withResolvers()
    this.#leaveIfIdle()
    await this.#left.promise
    await this[Symbol.asyncDispose]()
  }

  /** Breaks off what is still on its way. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client[Symbol.asyncDispose]()
    await this.#urgent.destroy()
  }

  /** It may have put the block behind others; if it cannot be told, it is as slow as it was. */
  async #escalate(cid: CID): Promise<void> {
    const path = `/v1/escalate/${cid.toV1().toString()}`
    try {
      const signal = AbortSignal.timeout(CONNECT_MS)
      const { body } = await this.#urgent.request({ method: 'POST', path, signal })
      await body.dump()
    } catch {
      // The block itself says how the peer does.
    }
  }

  #leaveIfIdle(): void {
    if (this.#waiting.size === 0) this.#left?.resolve()
  }

  #heard(): void {
    this.#heardMs = performance.now()
    for (const { isWorking } of this.#waiting) isWorking()
  }

  /** Others were quicker, or nobody waits any more. If it has given no sign of life meanwhile, that is a failure. */
  #overtaken(startedMs: number): void {
    const silentMs = performance.now() - Math.max(startedMs, this.#heardMs)
    if (silentMs >= hedgeMs(this)) this.health.failed()
  }
}

const LEFT_ALONE =
  'another node cannot be asked for blocks, and is left alone for a while: others fetch what it is home to'

const NOBODYS: BlockErrand = {
  priority: 'foreground',
  escalated: new AbortController().signal,
  isWorking: () => undefined,
}
