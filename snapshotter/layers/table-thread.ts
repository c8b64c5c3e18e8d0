import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { type ErrorCode, type ErrorFacts, LayerError } from '../errors.ts'
import type { ListAnswer, ListRequest } from '../prefetch/list-work.ts'
import type {
  ChunkedRequest,
  EstargzRequest,
  ExportAnswer,
  ExportRequest,
  ImageAnswer,
  ImageRequest,
  IndexAnswer,
  IndexRequest,
  SideIndexRequest,
  TableAnswer,
  TableRequest,
} from './table-work.ts'

/** How long the thread is kept without work, in ms. Layers of one pull follow each other within milliseconds. */
const IDLE_MS = 2_000

/** Heap of the thread. 4 GiB: a table of 4,000,000 entries takes 2 GiB, its tree and image as much. */
const HEAP_MIB_MAX = 4096

export type Task = { readonly id: number; readonly request: TableRequest }
export type Reply =
  | { readonly id: number; readonly answer: TableAnswer }
  | {
      readonly id: number
      readonly failure: { code: ErrorCode; message: string; facts: ErrorFacts }
    }

type Waiting = { resolve(answer: TableAnswer): void; reject(error: unknown): void }

/**
 * Works on tables of contents in a thread of its own, which ends when there is no more work: they are hundreds of thousands
 * of objects for a moment, and a process that once held them never gives the memory back. Page faults and containerd's calls are
 * not held up either.
 */
export class TableThread implements AsyncDisposable {
  #worker: Worker | undefined
  #idle: NodeJS.Timeout | undefined
  #tasks = 0
  readonly #waiting = new Map<number, Waiting>()

  /** Has the thread start now, for work that is about to come: it takes 80 ms, as long as some round trips to a peer. */
  warm(): void {
    this.#worker ??= this.#start()
    this.#restAfterWork()
  }

  /** Rejects with LayerError if the index, or the tables, are a lie or damaged. */
  index(
    request: IndexRequest | SideIndexRequest | ChunkedRequest | EstargzRequest,
  ): Promise<IndexAnswer> {
    return this.#ask(request) as Promise<IndexAnswer>
  }

  /** Rejects with LayerError if what is on disk is damaged. */
  export(request: ExportRequest): Promise<ExportAnswer> {
    return this.#ask(request) as Promise<ExportAnswer>
  }

  /** Rejects with LayerError if a tree cannot be mounted. */
  image(request: ImageRequest): Promise<ImageAnswer> {
    return this.#ask(request) as Promise<ImageAnswer>
  }

  /** Rejects with LayerError if a table of contents is damaged. */
  list<Request extends ListRequest>(
    request: Request,
  ): Promise<Extract<ListAnswer, { kind: Request['kind'] extends 'name' ? 'named' : 'placed' }>> {
    return this.#ask(request) as Promise<never>
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#idle)
    await this.#worker?.terminate()
  }

  #ask(request: TableRequest): Promise<TableAnswer> {
    clearTimeout(this.#idle)
    const worker = (this.#worker ??= this.#start())
    const id = this.#tasks++
    const { promise, resolve, reject } = Promise.withResolvers<TableAnswer>()
    this.#waiting.set(id, { resolve, reject })
    worker.postMessage({ id, request } satisfies Task, [])
    return promise
  }

  #start(): Worker {
    const worker = new Worker(new URL('./table-thread-entry.ts', import.meta.url), {
      name: 'tables',
      resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB_MAX },
    })
    worker.on('message', (reply: Reply) => this.#settle(reply))
    worker.on('error', (error) => this.#failAll(worker, error))
    void once(worker, 'exit')
      .catch(() => undefined)
      .then(() => this.#failAll(worker, new Error('the thread ended')))
    return worker
  }

  #settle(reply: Reply): void {
    const waiting = this.#waiting.get(reply.id)
    this.#waiting.delete(reply.id)
    if ('answer' in reply) waiting?.resolve(reply.answer)
    else {
      const { code, message, facts } = reply.failure
      waiting?.reject(new LayerError(code, message, facts))
    }
    this.#restAfterWork()
  }

  /** Ends the thread when no work has come for a while. */
  #restAfterWork(): void {
    if (this.#waiting.size > 0) return
    clearTimeout(this.#idle)
    this.#idle = setTimeout(() => {
      const worker = this.#worker
      this.#worker = undefined
      worker?.postMessage('end', [])
    }, IDLE_MS).unref()
  }

  /** Out of memory, or terminated: whoever waits is told, and the next task gets a new thread. */
  #failAll(worker: Worker, cause: Error): void {
    if (this.#worker !== worker) return
    this.#worker = undefined
    const error = new LayerError(
      'RESOURCE_EXHAUSTED',
      `the table of contents could not be worked on: ${cause.message}`,
      {},
      cause,
    )
    for (const waiting of this.#waiting.values()) waiting.reject(error)
    this.#waiting.clear()
  }
}
