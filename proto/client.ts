import {
  Client,
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

/** Makes a client of the service at `socketPath`. Dispose of it to close the connection. */
export function connect<Definition extends ServiceDefinition, Handlers>(
  contract: Contract<Definition, Handlers>,
  socketPath: string,
): ServiceClient<Definition, Handlers> {
  const client = new Client(`unix:${socketPath}`, credentials.createInsecure(), {
    'grpc.max_receive_message_length': MESSAGE_BYTES_MAX,
    'grpc.max_send_message_length': MESSAGE_BYTES_MAX,
  })
  const calls = Object.entries(contract.definition).map(([name, method]) => [
    name,
    method.responseStream ? streamOf(client, method) : answerOf(client, method),
  ])
  return {
    calls: Object.fromEntries(calls) as Calls<Definition, Handlers>,
    [Symbol.dispose]: () => client.close(),
  }
}

type Method = MethodDefinition<object, object>

function answerOf(
  client: Client,
  method: Method,
): (request: object, call: Call) => Promise<object> {
  return (request, { signal }) =>
    new Promise((resolve, reject) => {
      signal.throwIfAborted()
      const call = client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        new Metadata(),
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
): (request: object, call: Call) => AsyncIterable<object> {
  return async function* (request, { signal }) {
    signal.throwIfAborted()
    const call = client.makeServerStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      new Metadata(),
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
