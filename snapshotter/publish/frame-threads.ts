import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { LayerError } from '../errors.ts'

/** Threads of one layer. 4: cutting and hashing the tar, which one thread does, keeps no more than that busy. */
const THREADS_MAX = 4

/** Pieces to compress, one after another in one array. */
export type Batch = {
  readonly id: number
  readonly bytes: Uint8Array
  readonly lengths: readonly number[]
}

/** Their frames, in the same way. */
export type BatchFrames = {
  readonly id: number
  readonly bytes: Uint8Array
  readonly lengths: readonly number[]
}

type Waiting = {
  readonly resolve: (frames: Uint8Array[]) => void
  readonly reject: (error: unknown) => void
}

type FrameThread = { readonly worker: Worker; readonly waiting: Map<number, Waiting> }

/**
 * Compresses pieces on threads of their own, many at a time: on libuv's, each would cost the calling thread a stream object and a
 * turn, on one core half of what the compression itself takes.
 */
export class FrameThreads implements AsyncDisposable {
  readonly #threads: FrameThread[] = []
  #batches = 0

  /** The frames of `pieces`, in their order. Rejects with LayerError RESOURCE_EXHAUSTED if a thread ends before. */
  compress(pieces: readonly Uint8Array[]): Promise<Uint8Array[]> {
    const thread = this.#leastBusy()
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array[]>()
    const id = this.#batches++
    thread.waiting.set(id, { resolve, reject })
    const bytes = Uint8Array.from(Buffer.concat(pieces))
    const batch: Batch = { id, bytes, lengths: pieces.map((piece) => piece.length) }
    thread.worker.postMessage(batch, [bytes.buffer])
    return promise
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()))
  }

  #leastBusy(): FrameThread {
    const idle = this.#threads.find(({ waiting }) => waiting.size === 0)
    if (idle !== undefined) return idle
    if (this.#threads.length < Math.min(THREADS_MAX, availableParallelism())) return this.#start()
    return this.#threads.reduce((least, thread) =>
      thread.waiting.size < least.waiting.size ? thread : least,
    )
  }

  #start(): FrameThread {
    const worker = new Worker(new URL('./frame-thread-entry.ts', import.meta.url), {
      name: 'frames',
    })
    const waiting = new Map<number, Waiting>()
    worker.on('message', ({ id, bytes, lengths }: BatchFrames) => {
      const frames: Uint8Array[] = []
      let start = 0
      for (const length of lengths) {
        frames.push(bytes.subarray(start, start + length))
        start += length
      }
      waiting.get(id)?.resolve(frames)
      waiting.delete(id)
    })
    const fail = (cause: unknown): void => {
      const reason = cause instanceof Error ? cause.message : String(cause)
      const message = `a layer could not be compressed: its thread ended (${reason})`
      const error = new LayerError('RESOURCE_EXHAUSTED', message, {}, cause)
      for (const { reject } of waiting.values()) reject(error)
      waiting.clear()
    }
    worker.on('error', fail)
    once(worker, 'exit').then(([code]) => fail(`exit code ${code}`), fail)
    const thread = { worker, waiting }
    this.#threads.push(thread)
    return thread
  }
}
