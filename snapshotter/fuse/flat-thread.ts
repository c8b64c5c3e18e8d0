import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import { type MessagePort, receiveMessageOnPort } from 'node:worker_threads'
import { useIfPresent } from '../blobs/shared-units.ts'
import type { FlatFile, TableChange, ThreadReport, ThreadStart } from './flat-file.ts'
import {
  Errno,
  finishReply,
  isResent,
  OPCODE_COUNT,
  Opcode,
  parseInit,
  parseName,
  parseRead,
  parseRequest,
  READ_BYTES_MAX,
  REPLY_HEADER_BYTES,
  REQUEST_BYTES_MAX,
  type Request,
  ROOT_INODE,
  speaksOurProtocol,
  writeDirectory,
  writeEntry,
  writeError,
  writeFileAttributesReply,
  writeInit,
  writeOpened,
  writeRootAttributesReply,
  writeStatfs,
} from './messages.ts'
import { traceRead } from './read-trace.ts'
import { Cell, count } from './thread-counters.ts'

/** A file as this thread serves it. Its descriptor is the thread's own, so that nobody closes it under a read. */
type ServedFile = FlatFile & { fd?: number }

/** What becomes of a request: a reply of so many bytes lies ready, none is due, or the main thread owes it. */
const NO_REPLY = 0

/**
 * One thread that takes requests from /dev/fuse and answers them, blocking, until the file system is unmounted or
 * it is told to stop. It answers all about names and all reads of bytes on disk; other reads go to the main thread.
 * So a mount(2) or open(2) on the main thread that makes the kernel ask us is answered while it blocks.
 */
export class FlatThread {
  readonly #start: ThreadStart
  readonly #port: MessagePort
  readonly #files = new Map<number, ServedFile>()
  readonly #inodes = new Map<string, number>()
  readonly #requestBytes = Buffer.alloc(REQUEST_BYTES_MAX)
  readonly #reply = Buffer.alloc(REPLY_HEADER_BYTES + READ_BYTES_MAX)
  #version = 0
  #stopped = false

  constructor(start: ThreadStart, port: MessagePort) {
    this.#start = start
    this.#port = port
  }

  /** Serves until unmounted or stopped. Throws only if /dev/fuse itself fails. */
  run(): void {
    while (!this.#stopped) {
      const length = this.#nextRequest()
      if (length === undefined) break
      const request = parseRequest(this.#requestBytes, length)
      // After the read: a change made before the kernel sent the request is then always known.
      if (Atomics.load(this.#start.version, 0) !== this.#version) this.#learnChanges()
      count(this.#start.counters, Math.min(request.opcode, OPCODE_COUNT - 1), 1)
      if (isResent(request)) count(this.#start.counters, Cell.RESENT, 1)
      const replyBytes = this.#answer(request)
      if (replyBytes > NO_REPLY) this.#send(replyBytes)
    }
    for (const inode of this.#files.keys()) this.#forget(inode)
  }

  /** Blocks for a request and returns its length, or undefined once the file system is unmounted. */
  #nextRequest(): number | undefined {
    for (;;) {
      try {
        return readSync(this.#start.deviceFd, this.#requestBytes, 0, REQUEST_BYTES_MAX, null)
      } catch (error) {
        const code = (error as NodeJS.ErrnoException).code
        if (code === 'ENODEV') return undefined
        // A request that was withdrawn as we took it, or a signal: there is another one.
        if (code !== 'ENOENT' && code !== 'EINTR' && code !== 'EAGAIN') throw error
      }
    }
  }

  #answer(request: Request): number {
    try {
      return this.#dispatch(request)
    } catch (error) {
      this.#report({
        kind: 'trouble',
        sentence: `FUSE request ${request.opcode} of inode ${request.inode} was answered with EIO: ${String(error)}`,
      })
      return writeError(this.#reply, request, Errno.EIO)
    }
  }

  #dispatch(request: Request): number {
    switch (request.opcode) {
      case Opcode.READ:
        return this.#read(request)
      case Opcode.LOOKUP:
        return this.#lookup(request)
      case Opcode.GETATTR:
        return this.#getAttributes(request)
      case Opcode.OPEN:
        return this.#files.has(request.inode)
          ? writeOpened(this.#reply, request, this.#start.openFlags)
          : writeError(this.#reply, request, Errno.ESTALE)
      case Opcode.OPENDIR:
        return writeOpened(this.#reply, request, 0)
      case Opcode.READDIR:
        return writeDirectory(this.#reply, request, this.#files.values(), parseRead(request.body))
      case Opcode.STATFS:
        return writeStatfs(this.#reply, request, this.#files.size)
      case Opcode.INIT:
        return this.#init(request)
      case Opcode.RELEASE:
      case Opcode.RELEASEDIR:
      case Opcode.DESTROY:
        return writeError(this.#reply, request, 0)
      case Opcode.FORGET:
      case Opcode.BATCH_FORGET:
        return NO_REPLY
      default:
        // Not only for what we lack: to FLUSH, ACCESS and INTERRUPT it means "never ask again". An interrupt must not
        // end a read: it comes for harmless signals too, and a read that EROFS makes for a page would fail with EIO.
        return writeError(this.#reply, request, Errno.ENOSYS)
    }
  }

  #init(request: Request): number {
    const offer = parseInit(request.body)
    return speaksOurProtocol(offer)
      ? writeInit(this.#reply, request, offer)
      : writeError(this.#reply, request, Errno.EPROTO)
  }

  #lookup(request: Request): number {
    if (request.inode !== ROOT_INODE) return writeError(this.#reply, request, Errno.ENOTDIR)
    const name = parseName(request.body)
    const file = this.#files.get(this.#inodes.get(name) ?? 0)
    if (file !== undefined) return writeEntry(this.#reply, request, file)
    this.#stopped = name.startsWith(this.#start.stopPrefix)
    // A plain error is not remembered by the kernel: the name may be added in a moment.
    return writeError(this.#reply, request, Errno.ENOENT)
  }

  #getAttributes(request: Request): number {
    if (request.inode === ROOT_INODE) return writeRootAttributesReply(this.#reply, request)
    const file = this.#files.get(request.inode)
    return file === undefined
      ? writeError(this.#reply, request, Errno.ESTALE)
      : writeFileAttributesReply(this.#reply, request, file)
  }

  #read(request: Request): number {
    const file = this.#files.get(request.inode)
    if (file === undefined) return writeError(this.#reply, request, Errno.ESTALE)
    const { offset, size } = parseRead(request.body)
    if (size > READ_BYTES_MAX) return writeError(this.#reply, request, Errno.EINVAL)
    const end = Math.min(offset + size, file.size)
    if (offset >= end) return finishReply(this.#reply, request, 0)
    traceRead(this.#start.trace, request.inode, offset, end - offset)
    if (this.#readFromDisk(file, offset, end)) {
      count(this.#start.counters, Cell.HITS, 1)
      count(this.#start.counters, Cell.HIT_BYTES, end - offset)
      return finishReply(this.#reply, request, end - offset)
    }
    count(this.#start.counters, Cell.MISSES, 1)
    const { unique, inode, pid } = request
    this.#report({ kind: 'miss', miss: { unique, inode, offset, size: end - offset, pid } })
    return NO_REPLY
  }

  /** Puts bytes [start, end) behind the reply's header if all are on disk, and stayed there while they were read. */
  #readFromDisk(file: ServedFile, start: number, end: number): boolean {
    const { units } = file
    const evictions = Atomics.load(units.evictions, 0)
    if (!useIfPresent(units, { start, end }, Math.floor(Date.now() / 1000))) return false
    try {
      file.fd ??= openSync(units.dataPath, 'r')
      for (let at = start; at < end; ) {
        const into = REPLY_HEADER_BYTES + at - start
        const bytes = readSync(file.fd, this.#reply, into, end - at, at)
        if (bytes === 0) return false
        at += bytes
      }
    } catch {
      return false // No descriptor left, or a bad disk: the main thread reads it, or says why it cannot.
    }
    return Atomics.load(units.evictions, 0) === evictions
  }

  #send(length: number): void {
    try {
      writeSync(this.#start.deviceFd, this.#reply, 0, length)
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code
      // The reader was killed, or the file system unmounted: nobody waits for this reply.
      if (code === 'ENOENT' || code === 'ENODEV') return
      this.#report({ kind: 'trouble', sentence: `a FUSE reply was refused: ${String(error)}` })
    }
  }

  #learnChanges(): void {
    // The version first: a change posted meanwhile is taken now, and looked for again at the next request.
    this.#version = Atomics.load(this.#start.version, 0)
    for (
      let next = receiveMessageOnPort(this.#port);
      next;
      next = receiveMessageOnPort(this.#port)
    ) {
      const change = next.message as TableChange
      if (change.kind === 'remove') {
        this.#forget(change.inode)
        continue
      }
      this.#files.set(change.file.inode, { ...change.file })
      this.#inodes.set(change.file.name, change.file.inode)
    }
  }

  #forget(inode: number): void {
    const file = this.#files.get(inode)
    if (file === undefined) return
    if (file.fd !== undefined) closeSync(file.fd)
    this.#files.delete(inode)
    this.#inodes.delete(file.name)
  }

  #report(report: ThreadReport): void {
    this.#port.postMessage(report, [])
  }
}
