import { Duplex } from 'node:stream'
import type { Stream } from '@libp2p/interface'

/**
 * A libp2p stream as the socket of a connection, for `http.Server` to speak on. Bytes are asked for only while somebody reads, and
 * taken only as fast as the peer does. A peer that has closed its writing end may still be answered.
 */
export class StreamSocket extends Duplex {
  /** Who is at the other end; stands where a socket has its address. */
  readonly remoteAddress: string
  /** From where, an address of IP. */
  readonly remoteHost: string
  readonly #stream: Stream
  #silence: NodeJS.Timeout | undefined

  constructor(stream: Stream, { peer, host }: { readonly peer: string; readonly host: string }) {
    super({ allowHalfOpen: true })
    this.#stream = stream
    this.remoteAddress = peer
    this.remoteHost = host
    stream.addEventListener('message', ({ data }) => {
      this.#silence?.refresh()
      if (!this.destroyed && !this.push(data.subarray())) this.#pause()
    })
    stream.addEventListener('end', () => this.push(null), { once: true })
    stream.addEventListener(
      'close',
      ({ error }) => {
        this.destroy(error)
      },
      { once: true },
    )
    if (stream.readableEnded) this.push(null)
    this.#pause()
  }

  override _read(): void {
    // A stream that is ending hands out what it has by itself, and takes no orders.
    if (this.#stream.readStatus === 'paused') this.#stream.resume()
  }

  #pause(): void {
    if (this.#stream.readStatus === 'readable') this.#stream.pause()
  }

  override _write(bytes: Uint8Array, _encoding: string, done: Done): void {
    this.#silence?.refresh()
    void settle(this.#send(bytes), done)
  }

  override _final(done: Done): void {
    // Waits for what is on its way, not for the peer's end.
    void settle(this.#stream.close(), done)
  }

  async #send(bytes: Uint8Array): Promise<void> {
    if (!this.#stream.send(bytes)) await this.#stream.onDrain()
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    clearTimeout(this.#silence)
    // A reset would take from the peer what it has not read yet of an answer that is whole.
    if (error !== null || !this.writableFinished) {
      this.#stream.abort(error ?? new Error('the connection was ended before its answer'))
    }
    done(error)
  }

  /** As net.Socket has it: emits `timeout` after so many ms in which nothing was read or written; 0: never. */
  setTimeout(ms: number, listener?: () => void): this {
    clearTimeout(this.#silence)
    this.#silence = ms === 0 ? undefined : setTimeout(() => this.emit('timeout'), ms)
    if (listener !== undefined) this.once('timeout', listener)
    return this
  }
}

type Done = (error?: Error) => void

/** Tells a callback of Node's streams what became of it. */
async function settle(work: Promise<void>, done: Done): Promise<void> {
  let failure: Error | undefined
  try {
    await work
  } catch (error) {
    failure = error instanceof Error ? error : new Error(String(error))
  }
  done(failure)
}
