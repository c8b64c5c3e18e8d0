import { once } from 'node:events'
import {
  Client,
  type ClientDuplexStream,
  credentials,
  Metadata,
  type MethodDefinition,
  type ServiceDefinition,
} from '@grpc/grpc-js'
import type { Call, Calls, Contract } from './contract.ts'

/** Largest message of a call, in bytes: 16 MiB, containerd's own limit in both directions. */
const MESSAGE_BYTES_MAX = 16 * 1024 * 1024

/** A client of one service on a unix socket, with promises for answers. Dials when first called. */
export type ServiceClient<Definition, Handlers> = Disposable & {
  /** Each rejects with grpc-js's ServiceError: `code` and `details`. */
  readonly calls: Calls<Definition, Handlers>
}

/**
 * Makes a client of the service at `socketPath`; `headers` go with every call. Dispose of it to close the connection.
 */
export function connect<Definition extends ServiceDefinition, Handlers>(
  contract: Contract<Definition, Handlers>,
  socketPath: string,
  headers: Readonly<Record<string, string>> = {},
): ServiceClient<Definition, Handlers> {
  const target = `unix:${socketPath}`
  return connectTo(contract, { target, messageBytesMax: MESSAGE_BYTES_MAX, headers })
}

/** The same for a target in gRPC's own words, `unix:/path` or `host:port`, in plain text, with a limit to messages either way. */
export function connectTo<Definition extends ServiceDefinition, Handlers>(
  contract: Contract<Definition, Handlers>,
  options: {
    readonly target: string
    readonly messageBytesMax: number
    readonly headers?: Headers
  },
): ServiceClient<Definition, Handlers> {
  const { target, messageBytesMax, headers = {} } = options
  const client = new Client(target, credentials.createInsecure(), {
    'grpc.max_receive_message_length': messageBytesMax,
    'grpc.max_send_message_length': messageBytesMax,
    // What the environment says of proxies is meant for the web.
    'grpc.enable_http_proxy': 0,
  })
  const calls = Object.entries(contract.definition).map(([name, method]) => [
    name,
    method.requestStream
      ? exchangeOf(client, method, headers)
      : method.responseStream
        ? streamOf(client, method, headers)
        : answerOf(client, method, headers),
  ])
  return {
    calls: Object.fromEntries(calls) as Calls<Definition, Handlers>,
    [Symbol.dispose]: () => client.close(),
  }
}

type Method = MethodDefinition<object, object>
type Headers = Readonly<Record<string, string>>

function metadataOf(headers: Headers): Metadata {
  const metadata = new Metadata()
  for (const [name, value] of Object.entries(headers)) metadata.set(name, value)
  return metadata
}

function answerOf(
  client: Client,
  method: Method,
  headers: Headers,
): (request: object, call: Call) => Promise<object> {
  return (request, { signal }) =>
    new Promise((resolve, reject) => {
      signal.throwIfAborted()
      const call = client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        metadataOf(headers),
        {},
        (error, response) => {
          signal.removeEventListener('abort', cancel)
          if (error !== null) reject(error)
          else if (response !== undefined) resolve(response)
        },
      )
      const cancel = (): void => call.cancel()
      signal.addEventListener('abort', cancel)
    })
}

function streamOf(
  client: Client,
  method: Method,
  headers: Headers,
): (request: object, call: Call) => AsyncIterable<object> {
  return async function* (request, { signal }) {
    signal.throwIfAborted()
    const call = client.makeServerStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      metadataOf(headers),
      {},
    )
    const cancel = (): void => call.cancel()
    signal.addEventListener('abort', cancel)
    try {
      yield* call
    } finally {
      signal.removeEventListener('abort', cancel)
      call.cancel()
    }
  }
}

function exchangeOf(
  client: Client,
  method: Method,
  headers: Headers,
): (requests: AsyncIterable<object>, call: Call) => AsyncIterable<object> {
  return async function* (requests, { signal }) {
    signal.throwIfAborted()
    const call = client.makeBidiStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      metadataOf(headers),
      {},
    )
    const cancel = (): void => call.cancel()
    signal.addEventListener('abort', cancel)
    const ended = new AbortController()
    const sending = sendAll(call, requests, AbortSignal.any([signal, ended.signal]))
    // What the server says of a call that fails comes with its answers.
    sending.catch(cancel)
    try {
      yield* call
    } finally {
      ended.abort()
      signal.removeEventListener('abort', cancel)
      call.cancel()
    }
  }
}

/** Until `signal` aborts, when nobody reads them any more. */
async function sendAll(
  call: ClientDuplexStream<object, object>,
  messages: AsyncIterable<object>,
  signal: AbortSignal,
): Promise<void> {
  for await (const message of messages) {
    if (signal.aborted) return
    if (!call.write(message)) await once(call, 'drain', { signal })
  }
  call.end()
}
