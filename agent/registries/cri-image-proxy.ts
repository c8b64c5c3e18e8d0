import {
  Client,
  credentials,
  Metadata,
  type ServiceDefinition,
  type ServiceError,
} from '@grpc/grpc-js'
import type { Call, Service } from '../../proto/contract.ts'
import { criImageContract } from '../../proto/load.ts'
import type { PullImageRequest__Output } from '../../proto/types/runtime/v1/PullImageRequest.ts'
import { ForwardedFailure } from '../grpc-server.ts'
import type { KubeletPulls } from './kubelet-pulls.ts'

/** Largest message of a call, in bytes: 16 MiB, containerd's and the kubelet's own limit. */
const MESSAGE_BYTES_MAX = 16 * 1024 * 1024

/**
 * CRI's ImageService in front of containerd's, for the kubelet's `--image-service-endpoint`: every call is passed on byte by byte,
 * so that fields of newer versions survive, and what a pull carries of credentials is remembered. Dispose of it to close the
 * connection.
 */
export class CriImageProxy implements Disposable {
  readonly service: Service
  readonly #client: Client

  /** `beforePull` is awaited with the name of each image that is pulled; if it rejects, the pull fails. */
  constructor(
    containerdSocket: string,
    {
      pulls,
      beforePull,
    }: {
      readonly pulls: KubeletPulls
      readonly beforePull: (image: string, signal: AbortSignal) => Promise<void>
    },
  ) {
    this.#client = new Client(`unix:${containerdSocket}`, credentials.createInsecure(), {
      'grpc.max_receive_message_length': MESSAGE_BYTES_MAX,
      'grpc.max_send_message_length': MESSAGE_BYTES_MAX,
    })
    const { definition } = criImageContract()
    const names = Object.keys(definition)
    const { requestDeserialize } = definition.PullImage
    const forward = (path: string) => (request: Buffer, call: Call) =>
      this.#forward(path, request, call)
    const forwardPull = async (request: Buffer, call: Call): Promise<Buffer> => {
      const read = readOrUndefined(requestDeserialize, request)
      using pull = read && pulls.begin(read)
      if (pull !== undefined) await beforePull(read?.image?.image ?? '', call.signal)
      const response = await this.#forward(definition.PullImage.path, request, call)
      pull?.succeeded()
      return response
    }
    this.service = {
      definition: rawDefinition(definition),
      methods: Object.fromEntries(
        names.map((name) => [
          name,
          name === 'PullImage' ? forwardPull : forward(definition[name]?.path ?? ''),
        ]),
      ),
    }
  }

  [Symbol.dispose](): void {
    this.#client.close()
  }

  #forward(path: string, request: Buffer, { signal, metadata }: Call): Promise<Buffer> {
    const { promise, resolve, reject } = Promise.withResolvers<Buffer>()
    signal.throwIfAborted()
    const call = this.#client.makeUnaryRequest(
      path,
      asIs,
      asIs,
      request,
      metadata ?? new Metadata(),
      {},
      (error: ServiceError | null, response?: Buffer) => {
        signal.removeEventListener('abort', cancel)
        if (error !== null) reject(new ForwardedFailure(error))
        else resolve(response ?? Buffer.alloc(0))
      },
    )
    const cancel = (): void => call.cancel()
    signal.addEventListener('abort', cancel)
    return promise
  }
}

function readOrUndefined(
  read: (bytes: Buffer) => PullImageRequest__Output,
  request: Buffer,
): PullImageRequest__Output | undefined {
  try {
    return read(request)
  } catch {
    // What is wrong with it is for containerd to say.
    return undefined
  }
}

/** The same methods, of messages that nobody looks into. */
function rawDefinition(definition: ServiceDefinition): ServiceDefinition {
  return Object.fromEntries(
    Object.entries(definition).map(([name, method]) => [
      name,
      {
        ...method,
        requestSerialize: asIs,
        requestDeserialize: asIs,
        responseSerialize: asIs,
        responseDeserialize: asIs,
      },
    ]),
  )
}

function asIs(bytes: Buffer): Buffer {
  return bytes
}
