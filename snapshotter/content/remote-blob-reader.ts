import type { LayerBlob } from '../blobs/layer-blob.ts'
import type { ByteRange } from '../byte-range.ts'
import { type Digest, DigestCheck } from '../oci/digest.ts'
import { unlessAborted } from '../unless-aborted.ts'

/** Places at which blobs are read at once. 32: as many layers as containerd unpacks for ten pulls at a time. */
const CURSORS_MAX = 32

/** How long a place is kept for the next read, in ms. 30 s: containerd reads on within milliseconds, and a push waits for its registry. */
const IDLE_MS = 30_000

/**
 * Reads blobs that are kept elsewhere. containerd asks for 32 KiB after 32 KiB, so that each place that is read from goes on fetching
 * ahead. Whoever reads a blob from its first byte to its last gets the last bytes only once all of them were found to have its digest.
 */
export class RemoteBlobReader implements Disposable {
  readonly #cursors = new Set<Cursor>()

  /** Bytes `range` of the blob. Rejects with what they cannot be had for, with ImageError DATA_LOSS if they are not the blob's. */
  async *read(
    digest: Digest,
    open: () => LayerBlob,
    range: ByteRange,
    signal: AbortSignal,
  ): AsyncGenerator<Uint8Array, void> {
    const cursor = this.#take(digest, range.start) ?? new Cursor(digest, open(), range.start)
    let isGood = false
    try {
      yield* cursor.until(range.end, signal)
      isGood = cursor.isOpen
    } finally {
      if (isGood) this.#keep(cursor)
      else await cursor.close()
    }
  }

  [Symbol.dispose](): void {
    for (const cursor of this.#cursors) void cursor.close()
    this.#cursors.clear()
  }

  #take(digest: Digest, position: number): Cursor | undefined {
    for (const cursor of this.#cursors) {
      if (cursor.digest !== digest || cursor.position !== position) continue
      this.#cursors.delete(cursor)
      cursor.use()
      return cursor
    }
    return undefined
  }

  #keep(cursor: Cursor): void {
    this.#cursors.add(cursor)
    cursor.rest(IDLE_MS, () => {
      this.#cursors.delete(cursor)
      void cursor.close()
    })
    const [oldest] = this.#cursors
    if (this.#cursors.size <= CURSORS_MAX || oldest === undefined) return
    this.#cursors.delete(oldest)
    void oldest.close()
  }
}

/** A place in a blob, and what comes after it, on its way. */
class Cursor {
  readonly digest: Digest
  position: number
  readonly #size: number
  readonly #pieces: AsyncIterator<Uint8Array>
  readonly #closing = new AbortController()
  /** Of a blob that is read from its start. */
  readonly #check: DigestCheck | undefined
  #left: Uint8Array = new Uint8Array()
  #fetched: number
  #resting: NodeJS.Timeout | undefined

  constructor(digest: Digest, blob: LayerBlob, position: number) {
    this.digest = digest
    this.position = position
    this.#size = blob.size
    this.#fetched = position
    this.#check = position === 0 ? new DigestCheck(digest) : undefined
    const request = { priority: 'prefetch', signal: this.#closing.signal } as const
    this.#pieces = blob.stream({ start: position, end: blob.size }, request)[Symbol.asyncIterator]()
  }

  /** False once all of it was read. */
  get isOpen(): boolean {
    return this.position < this.#size
  }

  async *until(end: number, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
    while (this.position < end) {
      if (this.#left.length === 0) this.#left = await this.#next(signal)
      const piece = this.#left.subarray(0, end - this.position)
      this.#left = this.#left.subarray(piece.length)
      this.position += piece.length
      yield piece
    }
  }

  use(): void {
    clearTimeout(this.#resting)
  }

  rest(ms: number, done: () => void): void {
    this.#resting = setTimeout(done, ms)
    this.#resting.unref()
  }

  async close(): Promise<void> {
    clearTimeout(this.#resting)
    this.#closing.abort()
    await this.#pieces.return?.().then(undefined, () => undefined)
  }

  async #next(signal: AbortSignal): Promise<Uint8Array> {
    const next = await unlessAborted(this.#pieces.next(), signal)
    if (next.done === true) throw new RangeError(`blob ${this.digest} ended at ${this.#fetched}`)
    this.#check?.update(next.value)
    this.#fetched += next.value.length
    if (this.#fetched === this.#size) this.#check?.verify(`blob ${this.digest}`)
    return next.value
  }
}
