import type { IncomingHttpHeaders } from 'node:http'
import type { CID } from 'multiformats/cid'
import { type buildConnector, type Dispatcher, Pool } from 'undici'
import type { FilePath, VerifiedBlock } from '../../snapshotter/block-source.ts'
import { BlockError, CodedError } from '../../snapshotter/errors.ts'
import { verifyBlockAside } from '../../snapshotter/oci/verify-block.ts'
import {
  abortedGet,
  BLOCK_BYTES_MAX,
  type BlockErrand,
  type BlockProvider,
  ProviderHealth,
} from './block-provider.ts'
import { priorityHeader } from './http-priority.ts'
import { readCar } from './read-car.ts'

/** Connections to one gateway, a block each. 8: throughput on loopback no longer grew beyond it (research: 8 in parallel). */
const CONNECTIONS_MAX = 8

/** TCP and TLS hand-shakes: three lost packets. */
const CONNECT_MS = 5_000

/** Between two signs of life of an answer. 10 s: a gateway that has to look on IPFS itself takes some seconds. */
const STALL_MS = 10_000

/** A whole block, so that a trickle of bytes ends too. 30 s: 2 MiB at 70 KiB/s. */
const BLOCK_MS = 30_000

/** An identity CID that holds no bytes, which every gateway answers (specs.ipfs.tech, trustless-gateway, "Dedicated probe paths"). */
const NO_BYTES_CID = 'bafkqaaa'

/** What a test may shorten, in ms. */
export type GatewayTimes = { readonly stallMs: number; readonly blockMs: number }

/** `isSending` is called as bytes come. */
export type GatewayErrand = BlockErrand & { readonly isSending?: () => void }

/**
 * A trustless HTTP gateway (specs.ipfs.tech, trustless-gateway): raw blocks by CID over kept connections, each verified before anybody sees it.
 */
export class GatewayClient implements BlockProvider, AsyncDisposable {
  readonly kind = 'gateway'
  readonly name: string
  readonly health: ProviderHealth = new ProviderHealth()
  readonly #pool: Pool
  readonly #path: string
  readonly #times: GatewayTimes
  readonly #connections: number

  /** `url` as in the config: scheme, host, port, and a path if the gateway is below one. Throws CodedError INVALID_ARGUMENT. */
  constructor(
    url: string,
    times: GatewayTimes = { stallMs: STALL_MS, blockMs: BLOCK_MS },
    {
      connect = { timeout: CONNECT_MS },
      connections = CONNECTIONS_MAX,
    }: { connect?: buildConnector.BuildOptions; connections?: number } = {},
  ) {
    const { protocol, origin, pathname } = parseUrl(url)
    if (protocol !== 'http:' && protocol !== 'https:') {
      throw new CodedError('INVALID_ARGUMENT', `gateway ${url} must be http:// or https://`, {
        url,
      })
    }
    this.name = `gateway ${url.replace(/\/$/, '')}`
    this.#path = pathname.replace(/\/$/, '').replace(/\/ipfs$/, '')
    this.#times = times
    this.#connections = connections
    this.#pool = new Pool(origin, {
      connections,
      pipelining: 1,
      connect,
      // BlockResponse has its own, finer clock.
      headersTimeout: 0,
      bodyTimeout: 0,
    })
  }

  async get(cid: CID, signal: AbortSignal, errand?: GatewayErrand): Promise<Uint8Array> {
    if (signal.aborted) throw abortedGet(cid, signal)
    const startedMs = performance.now()
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>()
    const waiter = { resolve, reject, errand }
    const response = new BlockResponse(this.name, cid, this.#times, signal, waiter)
    const path = `${this.#path}/ipfs/${cid.toV1().toString()}?format=raw`
    const headers = {
      accept: 'application/vnd.ipld.raw',
      ...(errand && priorityHeader(errand.priority)),
    }
    this.#pool.dispatch({ method: 'GET', path, headers }, response)
    try {
      const bytes = await promise
      await verifyBlockAside(cid, bytes)
      this.health.succeeded(performance.now() - startedMs)
      return bytes
    } catch (error) {
      if (!(error instanceof BlockError)) throw error
      if (error.code === 'UNAVAILABLE') this.health.failed(response.retryAfterMs)
      if (error.code !== 'DATA_LOSS') throw error
      this.health.sentWrongBytes()
      throw new BlockError(
        'DATA_LOSS',
        `${this.name} sent wrong bytes: ${error.message}`,
        error.facts,
      )
    }
  }

  /** Whoever asks so is going to ask for much: more connections are made meanwhile. */
  async *along(
    { root, names, bytesMax }: FilePath,
    signal: AbortSignal,
  ): AsyncGenerator<VerifiedBlock, void, void> {
    const path = [root.toV1().toString(), ...names.map(encodeURIComponent)].join('/')
    const limited = AbortSignal.any([signal, AbortSignal.timeout(this.#times.blockMs)])
    try {
      setImmediate(() => this.#connectMore())
      const { statusCode, body } = await this.#pool.request({
        method: 'GET',
        path: `${this.#path}/ipfs/${path}?format=car&dag-scope=entity`,
        headers: { accept: 'application/vnd.ipld.car; version=1; order=dfs; dups=n' },
        signal: limited,
      })
      // Whatever is not read of it breaks the connection off, which is told as an error too.
      body.on('error', () => undefined)
      using _read = { [Symbol.dispose]: () => body.destroy() }
      if (statusCode !== 200) {
        const sentence = `${this.name} answers HTTP ${statusCode} for /ipfs/${path} as a CAR`
        throw new BlockError('NOT_FOUND', sentence, { cid: root.toString() })
      }
      yield* (await readCar(upTo(bytesMax, body))).blocks
    } catch (error) {
      throw this.#whyNotAlong(error, root, signal)
    }
  }

  /** By asking for the block of no bytes, as gateways are probed, on each but one of the connections that nobody has made yet. */
  #connectMore(): void {
    const { connected, running, pending } = this.#pool.stats
    const path = `${this.#path}/ipfs/${NO_BYTES_CID}?format=raw`
    for (let made = Math.max(connected, running + pending); made < this.#connections - 1; made++) {
      void this.#pool.request({ method: 'GET', path }).then(
        ({ body }) => body.dump(),
        // Whoever needs the connection tells.
        () => undefined,
      )
    }
  }

  #whyNotAlong(error: unknown, root: CID, signal: AbortSignal): unknown {
    if (signal.aborted) return abortedGet(root, signal)
    if (error instanceof CodedError) {
      if (error.code === 'DATA_LOSS') this.health.sentWrongBytes()
      return error
    }
    this.health.failed()
    const reason = error instanceof Error ? error.message : String(error)
    return new BlockError('UNAVAILABLE', `${this.name} failed: ${reason}`, {}, error)
  }

  /** Breaks off what is still on its way. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool.destroy()
  }
}

type Waiter = {
  readonly resolve: (bytes: Uint8Array) => void
  readonly reject: (error: BlockError) => void
  readonly errand: GatewayErrand | undefined
}

/** Collects one answer into one buffer. Settles once, whatever comes after. */
class BlockResponse implements Dispatcher.DispatchHandler {
  readonly #name: string
  readonly #cid: CID
  readonly #signal: AbortSignal
  readonly #waiter: Waiter
  readonly #times: GatewayTimes
  #stallTimer: NodeJS.Timeout | undefined
  #blockTimer: NodeJS.Timeout | undefined
  readonly #onAbort: () => void
  #controller: Dispatcher.DispatchController | undefined
  #settled = false
  /** As long as the answer says it is, or grown as it comes if it does not say. */
  #buffer: Uint8Array = new Uint8Array()
  #received = 0
  #declared: number | undefined
  retryAfterMs = 0

  constructor(name: string, cid: CID, times: GatewayTimes, signal: AbortSignal, waiter: Waiter) {
    this.#name = name
    this.#cid = cid
    this.#times = times
    this.#signal = signal
    this.#waiter = waiter
    this.#onAbort = () => this.#fail(abortedGet(cid, signal))
    signal.addEventListener('abort', this.#onAbort, { once: true })
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller
    if (this.#settled) {
      controller.abort(new Error('no longer wanted'))
      return
    }
    // Not before: waiting for one of the connections is no fault of the gateway's.
    const { stallMs, blockMs } = this.#times
    const late = (ms: number, what: string) => () =>
      this.#fail(this.#unavailable(`${what} for ${ms} ms`))
    this.#stallTimer = setTimeout(late(stallMs, 'sent nothing'), stallMs)
    this.#blockTimer = setTimeout(late(blockMs, 'has not finished the block'), blockMs)
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: IncomingHttpHeaders,
  ): void {
    this.#stallTimer?.refresh()
    if (status < 200) {
      // It is at it; the answer itself comes later.
      if (!this.#settled) this.#waiter.errand?.isWorking()
      return
    }
    if (status !== 200) {
      this.#fail(this.#refusal(status, headers))
      return
    }
    const length = Number(headers['content-length'] ?? Number.NaN)
    if (length > BLOCK_BYTES_MAX) this.#fail(this.#tooLarge(length))
    else if (length >= 0) {
      this.#declared = length
      this.#buffer = this.#waiter.errand?.memory?.take(length) ?? Buffer.allocUnsafeSlow(length)
    }
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#settled) return
    this.#stallTimer?.refresh()
    this.#waiter.errand?.isSending?.()
    const end = this.#received + chunk.length
    if (end > BLOCK_BYTES_MAX) {
      this.#fail(this.#tooLarge(end))
      return
    }
    if (end > this.#buffer.length) {
      const grown = Buffer.allocUnsafeSlow(
        Math.min(Math.max(end, 2 * this.#buffer.length), BLOCK_BYTES_MAX),
      )
      grown.set(this.#buffer.subarray(0, this.#received))
      this.#buffer = grown
    }
    this.#buffer.set(chunk, this.#received)
    this.#received = end
  }

  onResponseEnd(): void {
    if (this.#settled) return
    if (this.#declared !== undefined && this.#declared !== this.#received) {
      this.#fail(this.#unavailable(`ended after ${this.#received} of ${this.#declared} bytes`))
      return
    }
    this.#end()
    this.#waiter.resolve(this.#buffer.subarray(0, this.#received))
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    const code = 'code' in error && typeof error.code === 'string' ? ` (${error.code})` : ''
    this.#fail(this.#unavailable(`failed: ${error.message || error.name}${code}`, error))
  }

  #fail(error: BlockError): void {
    if (this.#settled) return
    this.#end()
    this.#controller?.abort(error)
    this.#waiter.reject(error)
  }

  #end(): void {
    this.#settled = true
    clearTimeout(this.#stallTimer)
    clearTimeout(this.#blockTimer)
    this.#signal.removeEventListener('abort', this.#onAbort)
  }

  #refusal(status: number, headers: IncomingHttpHeaders): BlockError {
    if (status === 404 || status === 410 || status === 451) {
      return new BlockError('NOT_FOUND', `${this.#name} does not have it (HTTP ${status})`, {
        cid: this.#cid.toString(),
      })
    }
    const retryAfterS = Number(headers['retry-after'])
    if (retryAfterS > 0) this.retryAfterMs = retryAfterS * 1000
    const location = headers.location?.slice(0, 200)
    const where =
      location === undefined
        ? ''
        : ` and points to ${location}; put the address that serves raw blocks itself in the config`
    return this.#unavailable(`answers HTTP ${status}${where}`)
  }

  #tooLarge(bytes: number): BlockError {
    return new BlockError(
      'DATA_LOSS',
      `block ${this.#cid.toString()} has ${bytes} bytes or more, a block may have ${BLOCK_BYTES_MAX}`,
      { cid: this.#cid.toString(), bytes },
    )
  }

  #unavailable(problem: string, cause?: unknown): BlockError {
    return new BlockError(
      'UNAVAILABLE',
      `${this.#name} ${problem}`,
      { cid: this.#cid.toString() },
      cause,
    )
  }
}

/** Throws CodedError OUT_OF_RANGE when more has come. */
async function* upTo(
  bytesMax: number,
  body: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, void> {
  let received = 0
  for await (const chunk of body) {
    received += chunk.length
    if (received > bytesMax) {
      throw new CodedError('OUT_OF_RANGE', `the CAR has more than ${bytesMax} bytes`)
    }
    yield chunk
  }
}

function parseUrl(url: string): URL {
  try {
    return new URL(url)
  } catch (cause) {
    throw new CodedError('INVALID_ARGUMENT', `gateway ${url} is not a URL`, { url }, cause)
  }
}
