import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { LayerError } from '../errors.ts'
import type { GroupFrame } from './compress-frame.ts'

/** Threads of one layer. 4: cutting and hashing the tar, which one thread does, keeps no more than that busy. */
const THREADS_MAX = 4

/** Pieces that are to share a frame, and how hard to compress it. */
export type FrameGroup = { readonly pieces: readonly Uint8Array[]; readonly level: number }

/** Groups of pieces to compress, one after another in one array; of each, the lengths of its pieces. */
export type Batch = {
  readonly id: number
  readonly bytes: Uint8Array
  readonly groups: readonly { readonly lengths: readonly number[]; readonly level: number }[]
}

/** Their frames, in the same way; of each group, its frames. */
export type BatchFrames = {
  readonly id: number
  readonly bytes: Uint8Array
  readonly groups: readonly (readonly { readonly length: number; readonly pieces: number }[])[]
}

type Waiting = {
  readonly resolve: (groups: GroupFrame[][]) => void
  readonly reject: (error: unknown) => void
}

type FrameThread = { readonly worker: Worker; readonly waiting: Map<number, Waiting> }

/**
 * Compresses groups of pieces on threads of their own, many at a time: on libuv's, each would cost the calling thread a stream object and a
 * turn, on one core half of what the compression itself takes.
 */
export class FrameThreads implements AsyncDisposable {
  readonly #threads: FrameThread[] = []
  #batches = 0

  /** The frames of each group, in order, as `compressGroup` makes them. Rejects with LayerError RESOURCE_EXHAUSTED if a thread ends before. */
  compress(groups: readonly FrameGroup[]): Promise<GroupFrame[][]> {
    const thread = this.#leastBusy()
    const { promise, resolve, reject } = Promise.withResolvers<GroupFrame[][]>()
    const id = this.#batches++
    thread.waiting.set(id, { resolve, reject })
    const bytes = Uint8Array.from(Buffer.concat(groups.flatMap(({ pieces }) => pieces)))
    const batch: Batch = {
      id,
      bytes,
      groups: groups.map(({ pieces, level }) => ({
        lengths: pieces.map((piece) => piece.length),
        level,
      })),
    }
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
    worker.on('message', ({ id, bytes, groups }: BatchFrames) => {
      let start = 0
      const frames = groups.map((group) =>
        group.map(({ length, pieces }): GroupFrame => {
          start += length
          return { bytes: bytes.subarray(start - length, start), pieces }
        }),
      )
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
