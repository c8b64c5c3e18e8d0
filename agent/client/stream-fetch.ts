import { Code, ConnectError } from '@connectrpc/connect'
import { fetch } from '@libp2p/http-fetch'
import type { Stream } from '@libp2p/interface'

/** Bytes of an answer's headers. 64 KiB: Connect puts an error's details there. */
const HEADER_BYTES_MAX = 64 * 1024

/** Opens a stream to the peer that is asked. */
export type OpenStream = (signal: AbortSignal | undefined) => Promise<Stream>

/**
 * `fetch` over libp2p: a stream a request, reset when its signal aborts. An answer that breaks off is an error for whoever reads it.
 * For Node and browsers.
 */
export function streamFetch(open: OpenStream): typeof globalThis.fetch {
  return async (resource, init) => {
    const url = resource instanceof Request ? resource.url : resource
    const signal = init?.signal ?? undefined
    const stream = await open(signal)
    let end: { readonly error: Error | undefined } | undefined
    // Who waits for the stream's end now; not a promise, which would remember all who ever did.
    let onEnd: (ended: { readonly error: Error | undefined }) => void = () => undefined
    const onAbort = (): void => stream.abort(reasonOf(signal))
    signal?.addEventListener('abort', onAbort, { once: true })
    stream.addEventListener(
      'close',
      ({ error }) => {
        signal?.removeEventListener('abort', onAbort)
        end = { error: signal?.aborted === true ? new Aborted(reasonOf(signal)) : error }
        onEnd(end)
      },
      { once: true },
    )
    let bytesBeforeBody: number | undefined = 0
    stream.addEventListener('message', ({ data }) => {
      if (bytesBeforeBody === undefined) return
      bytesBeforeBody += data.byteLength
      // One message may hold much of the body too: as much again, and no more.
      if (bytesBeforeBody - data.byteLength > HEADER_BYTES_MAX) {
        stream.abort(new Error(`the answer has more than ${HEADER_BYTES_MAX} bytes of headers`))
      }
    })
    try {
      signal?.throwIfAborted()
      // Its own limit counts lines of chunks too, as long as the answer lasts.
      const request = { ...withTypedBody(init), maxHeaderSize: Number.MAX_SAFE_INTEGER }
      const { promise: broken, reject } = Promise.withResolvers<never>()
      onEnd = ({ error }) => {
        if (error !== undefined) reject(brokenOff(error))
      }
      const response = await Promise.race([fetch(stream, url, request), broken])
      bytesBeforeBody = undefined
      const body = response.body?.getReader()
      if (body === undefined) return response
      const whole = new ReadableStream<Uint8Array>({
        async pull(controller) {
          const { promise: cutOff, reject } = Promise.withResolvers<never>()
          // All that came has been parsed by then, so what cannot be read at once will not come; and after an answer that was whole, how
          // the stream ended is of no interest.
          onEnd = ({ error }) => {
            setTimeout(() => reject(brokenOff(error)))
          }
          if (end !== undefined) onEnd(end)
          const { done, value } = await Promise.race([body.read(), cutOff])
          if (done) controller.close()
          else controller.enqueue(value)
        },
        cancel() {
          stream.abort(new Error('the answer is not wanted any more'))
        },
      })
      const { status, statusText, headers } = response
      return new Response(whole, { status, statusText, headers })
    } catch (error) {
      stream.abort(error instanceof Error ? error : new Error(String(error)))
      throw error
    }
  }
}

/** Bytes would be sent as `application/octet-stream`, whatever the headers say. */
function withTypedBody(init: RequestInit | undefined): RequestInit {
  const { body } = init ?? {}
  if (!ArrayBuffer.isView(body)) return init ?? {}
  const type = new Headers(init?.headers).get('content-type') ?? ''
  return { ...init, body: new Blob([body], { type }) }
}

/** Who asked has changed his mind. */
class Aborted extends Error {
  constructor(cause: Error) {
    super(cause.message, { cause })
    this.name = 'AbortError'
  }
}

function brokenOff(error: Error | undefined): Error {
  if (error instanceof Aborted) return error
  const reason = error?.message ?? 'it ended before the answer was whole'
  return new ConnectError(
    `the connection to the agent broke (${reason}): what it was told it may have done; ask for the status, and try again`,
    Code.Unavailable,
    undefined,
    undefined,
    error,
  )
}

function reasonOf(signal: AbortSignal | undefined): Error {
  const reason: unknown = signal?.reason
  return reason instanceof Error ? reason : new Error('aborted')
}
