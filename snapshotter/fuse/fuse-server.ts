import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { writeSync, writevSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads'
import type { BlockMemory } from '../block-source.ts'
import type { ByteRange } from '../byte-range.ts'
import { CodedError, KernelError } from '../errors.ts'
import type { Log } from '../log.ts'
import type { FlatFile, Miss, TableChange, ThreadReport, ThreadStart } from './flat-file.ts'
import {
  Errno,
  forgetNameNotice,
  Opcode,
  OpenFlags,
  REPLY_HEADER_BYTES,
  resendNotice,
  writeReplyHeader,
} from './messages.ts'
import { ReadTrace } from './read-trace.ts'
import { Cell, shareCounters, total } from './thread-counters.ts'

/** Threads that answer the kernel. 2: one served 1.9 GB/s, two 2.6, four no more and each costs 35 MB (research: lazyfs 3.2). */
const THREADS = 2

/** Inodes below this are the kernel's or reserved: 0 is none, 1 the root directory. */
const INODE_MIN = 16

/** How often one layer's failed reads are logged, in ms. EROFS asks for each page of a failed range again: 256 a MiB. */
const FAILURE_LOG_INTERVAL_MS = 1_000

/** Where bytes come from that are not on disk. */
export interface FlatSource {
  /**
   * Puts the bytes of `range` of the file, all of them, into memory that is as long, and that it asks for when there are some, each time the
   * same. A rejection becomes EIO for the reader.
   */
  readInto(
    inode: number,
    range: ByteRange,
    into: () => Uint8Array,
    request: {
      readonly priority: 'foreground'
      readonly pid: number
      readonly signal: AbortSignal
    },
  ): Promise<void>
}

/** Says in people's words which file a byte of the flat file belongs to, for the log. Never rejects. */
export type Describe = (inode: number, offset: number) => Promise<string>

/** What the server has done since it started. */
export type FuseCounters = {
  /** Requests by the name of their opcode. */
  readonly requests: ReadonlyMap<string, number>
  /** READs answered from disk, and their bytes. */
  readonly hits: number
  readonly hitBytes: number
  /** READs that had to wait for the network, and of those the ones answered with EIO. */
  readonly misses: number
  readonly failures: number
  /** READs that wait now. */
  readonly waiting: number
  /** Requests taken over from a server before this one. */
  readonly resent: number
}

/**
 * Serves a flat, read-only file system on an open and mounted /dev/fuse: one file for each layer. It keeps nothing
 * that the kernel relies on (inodes are the caller's, handles are inodes), so when its process dies another one takes
 * over on the same descriptor, provided that it adds the same files under the same inodes before it starts.
 */
export class FuseServer implements AsyncDisposable {
  /** Every read as it arrives, for whoever wants to know. */
  readonly trace: ReadTrace = new ReadTrace()
  readonly #deviceFd: number
  readonly #source: FlatSource
  readonly #log: Log
  readonly #describe: Describe | undefined
  readonly #openFlags: number
  readonly #files = new Map<number, FlatFile>()
  readonly #threads: ServingThread[] = []
  readonly #inFlight = new Set<Promise<void>>()
  readonly #leftToSuccessor = new AbortController()
  readonly #loggedAt = new Map<number, number>()
  /** What replies to reads that had to wait are put together in. */
  readonly #memory: BlockMemory
  readonly #stopPrefix = `.stop-${randomUUID()}-`
  #failures = 0

  constructor(
    { deviceFd, pageCache = false }: { deviceFd: number; pageCache?: boolean },
    {
      source,
      memory,
      log,
      describe,
    }: { source: FlatSource; memory: BlockMemory; log: Log; describe?: Describe },
  ) {
    this.#deviceFd = deviceFd
    this.#source = source
    this.#memory = memory
    this.#log = log
    this.#describe = describe
    this.#openFlags = OpenFlags.NOFLUSH | (pageCache ? OpenFlags.KEEP_CACHE : OpenFlags.DIRECT_IO)
  }

  /**
   * Shows a file, from now on. Its inode has to be the same whenever this layer is served, by any process.
   * Throws KernelError ALREADY_EXISTS or INVALID_ARGUMENT.
   */
  add(file: FlatFile): void {
    if (this.#files.has(file.inode)) {
      throw new KernelError('ALREADY_EXISTS', `inode ${file.inode} is already served`, {
        inode: file.inode,
        name: file.name,
      })
    }
    if (!Number.isSafeInteger(file.inode) || file.inode < INODE_MIN) {
      throw new KernelError(
        'INVALID_ARGUMENT',
        `inode ${file.inode} of ${file.name} is not a whole number from ${INODE_MIN} up`,
        { inode: file.inode, name: file.name },
      )
    }
    this.#files.set(file.inode, file)
    for (const thread of this.#threads) thread.tell({ kind: 'add', file })
  }

  /** Takes a file away. Whoever still has it open gets ESTALE for bytes the kernel does not hold. */
  remove(inode: number): void {
    const file = this.#files.get(inode)
    if (file === undefined) return
    this.#files.delete(inode)
    for (const thread of this.#threads) thread.tell({ kind: 'remove', inode })
    try {
      writeSync(this.#deviceFd, forgetNameNotice(file.name))
    } catch (error) {
      // ENOENT: the kernel does not know the name. ENODEV, EPERM: there is no mount that could.
      if (!hasCode(error, 'ENOENT', 'ENODEV', 'EPERM', 'ENOTCONN')) throw error
    }
  }

  /**
   * Starts to answer, first of all what a server before us took and left. Add all files before: a read of a file
   * that is not there fails. Rejects with KernelError FAILED_PRECONDITION if the descriptor has no mount.
   */
  async start(): Promise<void> {
    this.#askAgain()
    for (let index = 0; index < THREADS; index++) {
      const thread = new ServingThread(
        {
          deviceFd: this.#deviceFd,
          openFlags: this.#openFlags,
          stopPrefix: this.#stopPrefix,
          trace: this.trace.share(),
        },
        (report) => this.#take(report),
      )
      for (const file of this.#files.values()) thread.tell({ kind: 'add', file })
      this.#threads.push(thread)
    }
    await Promise.all(this.#threads.map((thread) => thread.started))
  }

  /** Settles when no thread serves any more: resolves after an unmount or `stop`, rejects if a thread failed. */
  async ended(): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.ended))
  }

  /**
   * Stops serving without an unmount, so that readers wait for the next server: ends the threads, then waits for the
   * reads in flight. Those still there when `signal` aborts are left unanswered; the next server gets them again.
   */
  async stop(mountpoint: string, signal: AbortSignal): Promise<void> {
    // Threads sit in read(2) and hear nothing. A name only they know, looked up, wakes one each, which answers and ends.
    await Promise.all(
      this.#threads.map(async (_, index) => {
        await stat(join(mountpoint, `${this.#stopPrefix}${index}`)).catch(() => undefined)
      }),
    )
    await this.ended()
    const leave = (): void => this.#leftToSuccessor.abort()
    signal.addEventListener('abort', leave, { once: true })
    if (signal.aborted) leave()
    await Promise.all(this.#inFlight)
    signal.removeEventListener('abort', leave)
  }

  /** Waits for the end after an unmount. A process that is still mounted must `stop` first, or end by SIGKILL. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.ended()
    this.#leftToSuccessor.abort()
    await Promise.all(this.#inFlight)
  }

  /** Counts since the start, for metrics. */
  counters(): FuseCounters {
    const threads = this.#threads.map((thread) => thread.counters)
    const named = Object.entries(Opcode).map(
      ([name, opcode]) => [name.toLowerCase(), total(threads, opcode)] as const,
    )
    return {
      requests: new Map(named),
      hits: total(threads, Cell.HITS),
      hitBytes: total(threads, Cell.HIT_BYTES),
      misses: total(threads, Cell.MISSES),
      failures: this.#failures,
      waiting: this.#inFlight.size,
      resent: total(threads, Cell.RESENT),
    }
  }

  #askAgain(): void {
    try {
      writeSync(this.#deviceFd, resendNotice())
    } catch (error) {
      if (hasCode(error, 'EINVAL')) {
        this.#log.warn(
          {},
          'this kernel (before 6.9) cannot send requests again: a read that the last server left stays stuck until its reader is killed',
        )
        return
      }
      throw new KernelError(
        'FAILED_PRECONDITION',
        `nothing is mounted on the FUSE descriptor ${this.#deviceFd}: mount it before serving`,
        { fd: this.#deviceFd },
        error,
      )
    }
  }

  #take(report: ThreadReport): void {
    if (report.kind === 'trouble') {
      this.#log.error({}, report.sentence)
      return
    }
    const work = this.#serveMiss(report.miss).finally(() => this.#inFlight.delete(work))
    this.#inFlight.add(work)
  }

  async #serveMiss(miss: Miss): Promise<void> {
    const { unique, inode, offset, size, pid } = miss
    const signal = this.#leftToSuccessor.signal
    try {
      const range = { start: offset, end: offset + size }
      let bytes: Uint8Array | undefined
      const into = (): Uint8Array => (bytes ??= this.#memory.take(size))
      await this.#source.readInto(inode, range, into, { priority: 'foreground', pid, signal })
      this.#reply(unique, 0, into())
      // Only now: where a part of it failed, another part may still be written into it.
      this.#memory.giveBack(into())
    } catch (error) {
      if (signal.aborted) return
      this.#failures += 1
      this.#reply(unique, Errno.EIO)
      void this.#logFailure(miss, error)
    }
  }

  /** Writes a reply whole, in one system call, as the kernel wants it. */
  #reply(unique: bigint, errno: number, bytes?: Uint8Array): void {
    const header = Buffer.alloc(REPLY_HEADER_BYTES)
    writeReplyHeader(header, unique, errno, bytes?.length ?? 0)
    try {
      writevSync(this.#deviceFd, bytes === undefined ? [header] : [header, bytes])
    } catch (error) {
      // The reader was killed, the request was answered by a server before us, or there is no mount any more.
      if (!hasCode(error, 'ENOENT', 'ENODEV')) {
        this.#log.error(
          { error: String(error) },
          `the kernel refused the reply to a read: ${String(error)}`,
        )
      }
    }
  }

  async #logFailure({ inode, offset, size, pid }: Miss, error: unknown): Promise<void> {
    const now = Date.now()
    if (now - (this.#loggedAt.get(inode) ?? 0) < FAILURE_LOG_INTERVAL_MS) return
    this.#loggedAt.set(inode, now)
    const name = this.#files.get(inode)?.name ?? `inode ${inode}`
    const failures = this.#failures
    const place = (await this.#describe?.(inode, offset)) ?? `layer ${name}`
    const why = error instanceof Error ? error.message : String(error)
    const code = error instanceof CodedError ? error.code : undefined
    this.#log.error(
      { layer: name, inode, offset, size, pid, code, failures },
      `process ${pid} got EIO for ${size} bytes at ${offset} of ${place}: ${why}`,
    )
  }
}

/** A worker thread and the main thread's end of the talk with it. */
class ServingThread {
  readonly counters: Float64Array = shareCounters()
  /** Resolves when the thread runs. */
  readonly started: Promise<unknown>
  /** Resolves when it came to its end, rejects if it failed. */
  readonly ended: Promise<void>
  readonly #version = new Int32Array(new SharedArrayBuffer(4))
  readonly #port: MessagePort

  constructor(
    start: Pick<ThreadStart, 'deviceFd' | 'openFlags' | 'stopPrefix' | 'trace'>,
    report: (report: ThreadReport) => void,
  ) {
    const { port1, port2 } = new MessageChannel()
    this.#port = port1
    port1.on('message', report)
    const complete: ThreadStart = { ...start, version: this.#version, counters: this.counters }
    const worker = new Worker(new URL('./flat-thread-entry.ts', import.meta.url), {
      name: 'fuse',
      workerData: { start: complete, port: port2 },
      transferList: [port2],
    })
    this.started = once(worker, 'online')
    this.ended = once(worker, 'exit').then(() => undefined)
    // Whoever awaits it hears of a failure; until then it is not an unhandled one.
    this.ended.catch(() => port1.close())
  }

  /** Tells of a change so that the thread knows it at its next request. */
  tell(change: TableChange): void {
    this.#port.postMessage(change, [])
    Atomics.add(this.#version, 0, 1)
  }
}

function hasCode(error: unknown, ...codes: string[]): boolean {
  return codes.includes((error as NodeJS.ErrnoException).code ?? '')
}
