import { Code, ConnectError, type Interceptor } from '@connectrpc/connect'
import { codeToString } from '@connectrpc/connect/protocol-connect'
import { CodedError, type ErrorCode } from '../../snapshotter/errors.ts'
import type { Log } from '../../snapshotter/log.ts'

/** The codes of Connect, which are gRPC's (connectrpc.com, "Error codes"). */
const CODES: Readonly<Record<ErrorCode, Code>> = {
  CANCELLED: Code.Canceled,
  INVALID_ARGUMENT: Code.InvalidArgument,
  DEADLINE_EXCEEDED: Code.DeadlineExceeded,
  NOT_FOUND: Code.NotFound,
  ALREADY_EXISTS: Code.AlreadyExists,
  PERMISSION_DENIED: Code.PermissionDenied,
  RESOURCE_EXHAUSTED: Code.ResourceExhausted,
  FAILED_PRECONDITION: Code.FailedPrecondition,
  ABORTED: Code.Aborted,
  OUT_OF_RANGE: Code.OutOfRange,
  UNIMPLEMENTED: Code.Unimplemented,
  UNAUTHENTICATED: Code.Unauthenticated,
  INTERNAL: Code.Internal,
  UNAVAILABLE: Code.Unavailable,
  DATA_LOSS: Code.DataLoss,
}

/** A call that has ended: `code` is Connect's, or `ok`. */
export type CallEnd = { readonly rpc: string; readonly code: string; readonly seconds: number }

/** Sends our errors with their codes and sentences; of all others only that there was one, and logs it. `onEnd` hears of every call. */
export function connectErrors(log: Log, onEnd: (end: CallEnd) => void): Interceptor {
  const translate = (error: unknown, method: string): ConnectError => {
    if (error instanceof ConnectError) return error
    if (error instanceof CodedError) {
      log.debug({ method, code: error.code, ...error.facts }, `refused: ${error.message}`)
      return new ConnectError(error.message, CODES[error.code])
    }
    const stack = error instanceof Error ? error.stack : undefined
    log.error({ method, stack }, `${method} failed: ${String(error)}`)
    return new ConnectError('the agent failed; its log says why', Code.Internal)
  }
  return (next) => async (request) => {
    const { name } = request.method
    const beganMs = performance.now()
    const ended = (code: string): void =>
      onEnd({ rpc: name, code, seconds: (performance.now() - beganMs) / 1_000 })
    const failed = (error: unknown): ConnectError => {
      const translated = translate(error, name)
      ended(codeToString(translated.code))
      return translated
    }
    try {
      const response = await next(request)
      if (response.stream) return { ...response, message: until(response.message, ended, failed) }
      ended('ok')
      return response
    } catch (error) {
      throw failed(error)
    }
  }
}

async function* until<T>(
  messages: AsyncIterable<T>,
  ended: (code: string) => void,
  failed: (error: unknown) => ConnectError,
): AsyncGenerator<T> {
  let isToldOf = false
  try {
    yield* messages
  } catch (error) {
    isToldOf = true
    throw failed(error)
  } finally {
    // Also when whoever listens has had enough.
    if (!isToldOf) ended('ok')
  }
}
