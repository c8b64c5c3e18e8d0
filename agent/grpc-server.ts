import { once } from 'node:events'
import { chmod, lstat, mkdir, mkdtemp, rename, rm } from 'node:fs/promises'
import { connect } from 'node:net'
import { dirname, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import {
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerUnaryCall,
  type ServerWritableStream,
  type StatusObject,
  type sendUnaryData,
  status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js'
import type { Call, Service } from '../proto/contract.ts'
import { CodedError, type ErrorCode } from '../snapshotter/errors.ts'
import { unlessAborted } from '../snapshotter/unless-aborted.ts'
import type { Logger } from './logger.ts'

/** How a call ended, by gRPC's names. UNKNOWN is an error that nobody foresaw. */
export type StatusName = ErrorCode | 'OK' | 'UNKNOWN'

export type GrpcServerConfig = {
  readonly socketPath: string
  /** Largest message in either direction, in bytes; `MESSAGE_BYTES_MAX` if undefined. */
  readonly messageBytesMax?: number
  /** How long close waits for calls under way before it cancels them, in ms. 10 s if undefined. */
  readonly closeGraceMs?: number
}

export type GrpcServerCollaborators = {
  readonly log: Pick<Logger, 'debug' | 'warn' | 'error'>
  /** Gives up opening the socket. Calls under way end with the server, not with this. */
  readonly signal: AbortSignal
  /** Told of every call when it has ended; `method` is `package.Service/Method`. */
  readonly onCall?: (method: string, status: StatusName, durationMs: number) => void
}

/** Largest message in either direction, in bytes. 16 MiB: what containerd's client sends and takes. */
const MESSAGE_BYTES_MAX = 16 * 1024 * 1024

/** Length of an error's sentence on the wire, in UTF-16 units. 2 Ki: it travels in a header, percent-encoded. */
const DETAILS_LENGTH_MAX = 2_048

/** 10 s: a page fault's deadline, the longest that a call is expected to wait for. */
const CLOSE_GRACE_MS = 10_000

/** How often it is looked whether the socket is still there, in ms. 1 s: containerd's client tries again for 3 s. */
const WATCH_MS = 1_000

/** How long cancelled calls may take to notice, in ms. 2 s: a few turns of a busy event loop. */
const CANCEL_GRACE_MS = 2_000

/** sun_path of unix(7), in bytes, less its NUL. */
const SOCKET_PATH_BYTES_MAX = 107

/** gRPC services on a unix socket that only its owner may use. Errors become status codes here and nowhere else. */
export class GrpcServer implements AsyncDisposable {
  readonly #config: GrpcServerConfig
  readonly #collaborators: GrpcServerCollaborators
  readonly #server: Server
  /** Calls under way, each with what cancels it. */
  readonly #calls = new Map<Promise<void>, AbortController>()
  #closed: Promise<void> | undefined
  #watching: NodeJS.Timeout | undefined
  #rebinding: Promise<void> | undefined

  private constructor(config: GrpcServerConfig, collaborators: GrpcServerCollaborators) {
    const { messageBytesMax = MESSAGE_BYTES_MAX } = config
    this.#config = config
    this.#collaborators = collaborators
    this.#server = new Server({
      'grpc.max_receive_message_length': messageBytesMax,
      'grpc.max_send_message_length': messageBytesMax,
    })
  }

  /**
   * Serves `services` on the socket, in the place of one that a dead process left. Rejects with CodedError
   * FAILED_PRECONDITION if a process answers there or it is no socket, INVALID_ARGUMENT if its path is too long.
   */
  static async listen(
    config: GrpcServerConfig,
    services: readonly Service[],
    collaborators: GrpcServerCollaborators,
  ): Promise<GrpcServer> {
    const grpc = new GrpcServer(config, collaborators)
    for (const service of services) {
      grpc.#server.addService(service.definition, grpc.#handlersOf(service))
    }
    await assertFree(config.socketPath)
    collaborators.signal.throwIfAborted()
    try {
      await grpc.#bind()
    } catch (error) {
      grpc.#server.forceShutdown()
      throw error
    }
    grpc.#watch()
    return grpc
  }

  /** Takes no more calls, waits for those under way up to `closeGraceMs`, then cancels them. Twice is harmless. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close()
    await this.#closed
  }

  async #close(): Promise<void> {
    const { log } = this.#collaborators
    clearInterval(this.#watching)
    await this.#rebinding
    // Deleted while we still answer on it: later it might be a successor's.
    await rm(this.#config.socketPath, { force: true })
    const refusing = new Promise<void>((resolve) => {
      this.#server.tryShutdown(() => resolve())
    })
    const graceMs = this.#config.closeGraceMs ?? CLOSE_GRACE_MS
    if (await endsWithin(graceMs, Promise.all([refusing, ...this.#calls.keys()]))) return
    log.warn({ calls: this.#calls.size }, `cancelling calls that did not end in ${graceMs} ms`)
    const reason = new CodedError('UNAVAILABLE', 'the agent is stopping')
    for (const cancel of this.#calls.values()) cancel.abort(reason)
    const ended = await endsWithin(CANCEL_GRACE_MS, Promise.all(this.#calls.keys()))
    this.#server.forceShutdown()
    if (!ended) log.error({ calls: this.#calls.size }, 'leaving calls behind that do not end')
  }

  /** Binds where nobody else can look and moves the socket into place, so that it is never there with wider permissions. */
  async #bind(): Promise<void> {
    const { socketPath } = this.#config
    await mkdir(dirname(socketPath), { recursive: true })
    const privateDir = await mkdtemp(`${dirname(socketPath)}/.`)
    try {
      const path = join(privateDir, 's')
      assertShort(socketPath, path)
      await new Promise<void>((resolve, reject) => {
        const insecure = ServerCredentials.createInsecure()
        this.#server.bindAsync(`unix:${path}`, insecure, (error) => {
          if (error === null) resolve()
          else reject(error)
        })
      })
      await chmod(path, 0o600)
      await rename(path, socketPath)
    } finally {
      await rm(privateDir, { recursive: true })
    }
  }

  /** Listens again where somebody has removed the socket: whoever is connected would go on, and nobody else could come. */
  #watch(): void {
    const { log } = this.#collaborators
    const { socketPath } = this.#config
    this.#watching = setInterval(() => {
      this.#rebinding ??= this.#rebindIfGone()
        .catch((error: unknown) => {
          const reason = error instanceof Error ? error.message : String(error)
          log.error(
            { socketPath },
            `${socketPath} was removed, and cannot be made again: ${reason}`,
          )
        })
        .finally(() => {
          this.#rebinding = undefined
        })
    }, WATCH_MS)
    this.#watching.unref()
  }

  async #rebindIfGone(): Promise<void> {
    const { socketPath } = this.#config
    const isGone = await lstat(socketPath).then(
      () => false,
      (error: NodeJS.ErrnoException) => error.code === 'ENOENT',
    )
    if (!isGone || this.#closed !== undefined) return
    await this.#bind()
    this.#collaborators.log.warn(
      { socketPath },
      `listens again at ${socketPath}, which somebody removed`,
    )
  }

  #handlersOf({ definition, methods }: Service): UntypedServiceImplementation {
    const handlers: UntypedServiceImplementation = {}
    for (const [name, { path, requestStream, responseStream }] of Object.entries(definition)) {
      const method = methods[name]
      if (method === undefined) continue // grpc-js answers UNIMPLEMENTED.
      if (responseStream) {
        handlers[name] = (call: StreamCall | ExchangeCall) => {
          this.#run(
            path,
            call,
            (signal) => {
              const told = { signal, metadata: call.metadata }
              const answers = requestStream
                ? (method as ExchangeMethod)(received(call as ExchangeCall, signal), told)
                : (method as StreamMethod)((call as StreamCall).request, told)
              return sendAll(call, answers, signal)
            },
            (failure) => call.emit('error', failure),
          )
        }
      } else {
        const answering = method as UnaryMethod
        handlers[name] = (call: UnaryCall, answer: sendUnaryData<unknown>) => {
          this.#run(
            path,
            call,
            async (signal) => {
              const { metadata, request } = call
              answer(null, await answering(request, { signal, metadata }))
            },
            (failure) => answer(failure),
          )
        }
      }
    }
    return handlers
  }

  #run(
    path: string,
    call: { once(event: 'cancelled', listener: () => void): unknown },
    work: (signal: AbortSignal) => Promise<void>,
    fail: (failure: Partial<StatusObject>) => void,
  ): void {
    const started = performance.now()
    const method = path.slice(1)
    const cancel = new AbortController()
    call.once('cancelled', () => {
      cancel.abort(new CodedError('CANCELLED', `the caller of ${method} went away`))
    })
    const ended = (async () => {
      let name: StatusName = 'OK'
      try {
        await work(cancel.signal)
      } catch (error) {
        name = statusOf(error)
        this.#logFailure(method, name, error)
        const own = { code: status[name], details: sentenceOf(error).slice(0, DETAILS_LENGTH_MAX) }
        fail(error instanceof ForwardedFailure ? error.status : own)
      }
      this.#collaborators.onCall?.(method, name, performance.now() - started)
    })()
    this.#calls.set(ended, cancel)
    void ended.finally(() => this.#calls.delete(ended))
  }

  #logFailure(method: string, name: StatusName, error: unknown): void {
    const { log } = this.#collaborators
    // Whoever it is from has logged it, or has not for a reason.
    if (error instanceof ForwardedFailure) {
      log.debug({ method, code: error.status.code }, 'a forwarded call failed')
      return
    }
    const facts = { method, status: name, ...(error instanceof CodedError ? error.facts : {}) }
    // Part of every pull, so nothing to tell anybody.
    if (EXPECTED.has(name)) log.debug(facts, sentenceOf(error))
    else if (name === 'UNKNOWN' || name === 'INTERNAL' || name === 'DATA_LOSS') {
      log.error({ ...facts, err: error }, sentenceOf(error))
    } else log.warn(facts, sentenceOf(error))
  }
}

type UnaryCall = ServerUnaryCall<unknown, unknown>
type StreamCall = ServerWritableStream<unknown, unknown>
type ExchangeCall = ServerDuplexStream<unknown, unknown>
type UnaryMethod = (request: unknown, call: Call) => Promise<unknown>
type StreamMethod = (request: unknown, call: Call) => AsyncIterable<unknown>
type ExchangeMethod = (requests: AsyncIterable<unknown>, call: Call) => AsyncIterable<unknown>

const EXPECTED: ReadonlySet<StatusName> = new Set(['NOT_FOUND', 'ALREADY_EXISTS', 'CANCELLED'])

/** What the caller sends, until it has said all. Rejects when the call is cancelled: the stream itself need not notice. */
async function* received(
  call: ExchangeCall,
  signal: AbortSignal,
): AsyncGenerator<unknown, void, void> {
  const messages: AsyncIterator<unknown> = call[Symbol.asyncIterator]()
  for (;;) {
    const next = await unlessAborted(messages.next(), signal)
    if (next.done === true) return
    yield next.value
  }
}

async function sendAll(
  call: StreamCall | ExchangeCall,
  messages: AsyncIterable<unknown>,
  signal: AbortSignal,
): Promise<void> {
  for await (const message of messages) {
    signal.throwIfAborted()
    if (!call.write(message)) await once(call, 'drain', { signal })
  }
  call.end()
}

/** How another server's call ended that was only passed on: its status becomes the caller's as it is. */
export class ForwardedFailure extends Error {
  readonly status: StatusObject

  constructor(status: StatusObject) {
    super(`a forwarded call ended with status ${status.code}`)
    this.name = 'ForwardedFailure'
    this.status = status
  }
}

/** Ours by class, others by the codes that they carry. */
function statusOf(error: unknown): StatusName {
  if (error instanceof ForwardedFailure) return 'UNKNOWN'
  if (error instanceof CodedError) return error.code
  if (!(error instanceof Error)) return 'UNKNOWN'
  if (error.name === 'AbortError') return 'CANCELLED'
  if (error.name === 'TimeoutError') return 'DEADLINE_EXCEEDED'
  const [code, errcode] = ['code' in error && error.code, 'errcode' in error && error.errcode]
  if (code === 'ENOSPC' || code === 'EDQUOT' || errcode === SQLITE_FULL) return 'RESOURCE_EXHAUSTED'
  if (code === 'EACCES' || code === 'EPERM') return 'PERMISSION_DENIED'
  return 'UNKNOWN'
}

/** Of sqlite3.h: the disk is full. */
const SQLITE_FULL = 13

function sentenceOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** Rejects unless there is nothing at `socketPath`, or a socket on which nobody listens. */
async function assertFree(socketPath: string): Promise<void> {
  const found = await lstat(socketPath).catch(() => undefined)
  if (found === undefined) return
  if (!found.isSocket()) {
    throw new CodedError(
      'FAILED_PRECONDITION',
      `${socketPath} exists and is not a socket: move it away`,
    )
  }
  const socket = connect(socketPath)
  try {
    await once(socket, 'connect')
  } catch (error) {
    // Bound once, by a process that is gone.
    if (error instanceof Error && 'code' in error && error.code === 'ECONNREFUSED') return
    throw new CodedError(
      'FAILED_PRECONDITION',
      `cannot tell whether socket ${socketPath} is in use: ${sentenceOf(error)}`,
      {},
      error,
    )
  } finally {
    socket.destroy()
  }
  throw new CodedError(
    'FAILED_PRECONDITION',
    `socket ${socketPath} is in use: another agent answers on it`,
  )
}

function assertShort(...paths: readonly string[]): void {
  for (const path of paths) {
    const length = Buffer.byteLength(path)
    if (length <= SOCKET_PATH_BYTES_MAX) continue
    throw new CodedError(
      'INVALID_ARGUMENT',
      `socket path ${path} has ${length} bytes, the kernel takes ${SOCKET_PATH_BYTES_MAX}: choose a shorter directory`,
    )
  }
}

async function endsWithin(limitMs: number, work: Promise<unknown>): Promise<boolean> {
  const stop = new AbortController()
  const late = setTimeout(limitMs, false, { signal: stop.signal }).catch(() => false)
  const ended = await Promise.race([work.then(() => true), late])
  stop.abort()
  return ended
}
