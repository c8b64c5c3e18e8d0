import { compressGroup, type GroupFrame, START_ZSTD_LEVEL, ZSTD_LEVEL } from './compress-frame.ts'
import { FrameThreads } from './frame-threads.ts'
import type { LayerPiece } from './layer-pieces.ts'

/** Pieces that are being compressed, or wait for their turn in the blob, in bytes. 16 MiB: eight batches for each of four threads. */
const UNDERWAY_BYTES_MAX = 16 * 1024 * 1024

/** Pieces that a thread is given at once, in bytes. 512 KiB: 10 ms of its time, and a message for it costs a hundredth. */
const BATCH_BYTES_MIN = 512 * 1024

/** Layers up to this long are compressed on this thread, in bytes. 1 MiB: 20 ms, which is what threads take to start. */
const INLINE_BYTES_MAX = 1024 * 1024

/** A frame of the blob, and the pieces that are in it. */
export type PlacedFrame = { readonly pieces: readonly LayerPiece[]; readonly bytes: Uint8Array }

/** A group, with its frames once that was asked for. */
type Entry = {
  readonly pieces: readonly LayerPiece[]
  readonly bytes: number
  frames: Promise<GroupFrame[]> | undefined
}

/** Compresses groups of pieces, several at once, and gives the frames back in order. */
export class FramesUnderway implements AsyncDisposable {
  readonly #threads = new FrameThreads()
  #queue: Entry[] = []
  /** Groups at the end of the queue that no thread was given. */
  #gathered: Entry[] = []
  #gatheredBytes = 0
  #bytes = 0
  #isLong = false

  get isFull(): boolean {
    return this.#bytes > UNDERWAY_BYTES_MAX
  }

  get isEmpty(): boolean {
    return this.#queue.length === 0
  }

  /** Takes the next pieces: one frame, or several if a block would be too small for it. */
  add(pieces: readonly LayerPiece[]): void {
    const bytes = pieces.reduce((sum, piece) => sum + piece.bytes.length, 0)
    const entry: Entry = { pieces, bytes, frames: undefined }
    this.#queue.push(entry)
    this.#gathered.push(entry)
    this.#gatheredBytes += bytes
    this.#bytes += bytes
    this.#isLong ||= this.#bytes > INLINE_BYTES_MAX
    if (this.#isLong && this.#gatheredBytes >= BATCH_BYTES_MIN) this.#send()
  }

  /** The frames of the first group that is not done. Rejects as `FrameThreads.compress`. */
  async next(): Promise<PlacedFrame[]> {
    const [first] = this.#queue
    if (first === undefined) throw new RangeError('no frame is under way')
    if (first.frames === undefined && this.#isLong) this.#send()
    this.#queue.shift()
    const frames = (await first.frames) ?? inline(first.pieces)
    this.#bytes -= first.bytes
    let placed = 0
    return frames.map(({ bytes, pieces }) => {
      placed += pieces
      return { bytes, pieces: first.pieces.slice(placed - pieces, placed) }
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#threads[Symbol.asyncDispose]()
  }

  #send(): void {
    const entries = this.#gathered
    this.#gathered = []
    this.#gatheredBytes = 0
    const groups = entries.map(({ pieces }) => ({
      pieces: pieces.map(({ bytes }) => bytes),
      level: levelOf(pieces),
    }))
    const frames = this.#threads.compress(groups)
    for (const [position, entry] of entries.entries()) {
      entry.frames = frames.then((all) => all[position] ?? [])
      // A failure is thrown where the frames are awaited, which may be later than Node allows.
      entry.frames.catch(() => undefined)
    }
  }
}

function inline(pieces: readonly LayerPiece[]): GroupFrame[] {
  const bytes = pieces.map((piece) => piece.bytes)
  const [only, ...more] = bytes
  return compressGroup(
    only !== undefined && more.length === 0 ? only : Buffer.concat(bytes),
    bytes.map(({ length }) => length),
    levelOf(pieces),
  )
}

/** No group holds both what a start reads and what it does not. */
function levelOf(pieces: readonly LayerPiece[]): number {
  return pieces.some(({ content }) => content?.isRead === true) ? START_ZSTD_LEVEL : ZSTD_LEVEL
}
