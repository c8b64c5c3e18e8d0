import type {
  handleBidiStreamingCall,
  handleServerStreamingCall,
  handleUnaryCall,
  Metadata,
  ServiceDefinition,
} from '@grpc/grpc-js'
import type { MethodDefinition } from '@grpc/proto-loader'

/** A gRPC service as loaded from its .proto file, with the types generated from the same file. */
export type Contract<Definition extends ServiceDefinition, Handlers> = {
  readonly definition: Definition
  /** Never set: it carries the messages' types. */
  readonly handlers?: Handlers
}

/** What a method is told about the call beside its request. */
export type Call = {
  /** Aborts when the caller cancels, goes away or runs out of time, and when the server gives up waiting. */
  readonly signal: AbortSignal
  /** What the caller sent along, where there is a caller. */
  readonly metadata?: Metadata
}

/**
 * The methods that implement a service: a promise for an answer, an async iterable for a stream of them; where the caller streams
 * too, its messages are one as well.
 */
export type Methods<Handlers> = {
  readonly [Name in keyof Handlers as string extends Name
    ? never
    : Name]: Handlers[Name] extends handleBidiStreamingCall<infer Request, infer Response>
    ? (requests: AsyncIterable<Request>, call: Call) => AsyncIterable<Response>
    : Handlers[Name] extends handleServerStreamingCall<infer Request, infer Response>
      ? (request: Request, call: Call) => AsyncIterable<Response>
      : Handlers[Name] extends handleUnaryCall<infer Request, infer Response>
        ? (request: Request, call: Call) => Promise<Response>
        : never
}

/** The same methods as a client calls them. */
export type Calls<Definition, Handlers> = {
  readonly [Name in keyof Definition as string extends Name
    ? never
    : Name]: Definition[Name] extends MethodDefinition<
    infer Request,
    infer _Response,
    infer _Received,
    infer Response
  >
    ? Handlers[Name & keyof Handlers] extends handleBidiStreamingCall<infer _Asked, infer _Sent>
      ? (requests: AsyncIterable<Request>, call: Call) => AsyncIterable<Response>
      : Handlers[Name & keyof Handlers] extends handleServerStreamingCall<infer _Asked, infer _Sent>
        ? (request: Request, call: Call) => AsyncIterable<Response>
        : (request: Request, call: Call) => Promise<Response>
    : never
}

/** A service ready to be served; its message types are checked and forgotten. */
export type Service = {
  readonly definition: ServiceDefinition
  readonly methods: Readonly<Record<string, Method>>
}

type Method = (request: never, call: Call) => Promise<unknown> | AsyncIterable<unknown>

/** Binds methods to the contract that they implement. */
export function implement<Definition extends ServiceDefinition, Handlers>(
  contract: Contract<Definition, Handlers>,
  methods: Methods<Handlers>,
): Service {
  return { definition: contract.definition, methods: methods as Service['methods'] }
}

/** The same service, of whose methods nobody is told the outcome, an answer or a failure, before `ready` has resolved. */
export function answeringAfter(ready: () => Promise<void>, service: Service): Service {
  const methods = Object.entries(service.methods).map(([name, method]): [string, Method] => [
    name,
    (request, call) => {
      const outcome = method(request, call)
      return Symbol.asyncIterator in outcome ? eachAfter(ready, outcome) : after(ready, outcome)
    },
  ])
  return { definition: service.definition, methods: Object.fromEntries(methods) }
}

async function after<T>(ready: () => Promise<void>, answer: Promise<T>): Promise<T> {
  try {
    return await answer
  } finally {
    await ready()
  }
}

async function* eachAfter<T>(
  ready: () => Promise<void>,
  answers: AsyncIterable<T>,
): AsyncGenerator<T, void> {
  try {
    for await (const answer of answers) {
      await ready()
      yield answer
    }
  } finally {
    await ready()
  }
}
