import { Code, ConnectError, type Interceptor } from '@connectrpc/connect'
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

/** Sends our errors with their codes and sentences; of all others only that there was one, and logs it. */
export function connectErrors(log: Log): Interceptor {
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
    try {
      const response = await next(request)
      if (!response.stream) return response
      return { ...response, message: translated(response.message, name) }
    } catch (error) {
      throw translate(error, name)
    }
  }

  async function* translated<T>(messages: AsyncIterable<T>, method: string): AsyncGenerator<T> {
    try {
      yield* messages
    } catch (error) {
      throw translate(error, method)
    }
  }
}
