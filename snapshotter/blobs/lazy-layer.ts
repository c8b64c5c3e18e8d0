import { setTimeout } from 'node:timers/promises'
import type { Priority } from '../block-source.ts'
import type { ByteRange } from '../byte-range.ts'
import { LayerError, RegistryError } from '../errors.ts'
import type { ReusedMemory } from '../reused-memory.ts'
import type { FetchQueue, FetchRequest } from './fetch-queue.ts'
import type { LayerFile } from './layer-file.ts'
import type { UnitSource } from './layer-source.ts'
import { ReadAhead } from './read-ahead.ts'
import { unitAt, unitRange } from './shared-units.ts'

/** Before a registry that failed is asked again, in ms: 250, then twice that each time, up to 4 s. */
const FIRST_PAUSE_MS = 250
const LONGEST_PAUSE_MS = 4_000

/** The share of a layer's bytes that readers wait for before it counts as one that is read whole. More than half: the rest costs less than it. */
const MOST_OF_A_LAYER = 0.5

/** Who reads and how urgent it is. */
export type ReadRequest = {
  readonly priority: Priority
  readonly signal: AbortSignal
  /** The process whose page fault it is. */
  readonly pid?: number
}

/** A part of a unit that somebody in the foreground had to wait for. */
export type WaitEvent = {
  readonly inode: number
  readonly unit: number
  /** The bytes wanted of it, in the layer file. */
  readonly offset: number
  readonly length: number
  /** Milliseconds since the epoch. */
  readonly startedMs: number
  readonly durationMs: number
  readonly pid: number | undefined
  /** Why it was not served; undefined if it was. */
  readonly error: unknown
}

/** The bytes of a unit, in memory that is somebody else's from the next turn of the event loop on: who wants some of them copies these at once. */
export type Fetched = Uint8Array

/** Where bytes are wanted; asked for once there are some, so that whoever waits for the network needs no memory. */
export type Destination = () => Uint8Array

type Collaborators = {
  readonly source: UnitSource
  readonly queue: FetchQueue<Fetched>
  readonly memory: ReusedMemory
  readonly onWait: (event: WaitEvent) => void
  /** Called with the bytes of each unit after it arrived. */
  readonly onArrival: (layer: LazyLayer, bytes: number) => void
  /** Called once, when readers have waited for most of the layer. */
  readonly onMostRead: (layer: LazyLayer) => void
}

/** A layer that is read as if it were all here: what is missing is fetched, given to the reader, and kept. */
export class LazyLayer implements AsyncDisposable {
  readonly inode: number
  readonly name: string
  readonly file: LayerFile
  readonly #source: UnitSource
  readonly #queue: FetchQueue<Fetched>
  readonly #memory: ReusedMemory
  readonly #onWait: (event: WaitEvent) => void
  readonly #onArrival: (layer: LazyLayer, bytes: number) => void
  readonly #onMostRead: (layer: LazyLayer) => void
  readonly #ahead: ReadAhead
  /** Units that others fetch before they are read. */
  readonly #expected = new Set<ReadonlySet<number>>()
  /** Bytes that readers have waited for, or would have. */
  #wantedBytes = 0
  #isMostRead = false
  readonly #closed = new AbortController()
  #directMounts = 0

  constructor(
    { inode, name, file }: { inode: number; name: string; file: LayerFile },
    { source, queue, memory, onWait, onArrival, onMostRead }: Collaborators,
  ) {
    this.inode = inode
    this.name = name
    this.file = file
    this.#source = source
    this.#queue = queue
    this.#memory = memory
    this.#onWait = onWait
    this.#onArrival = onArrival
    this.#onMostRead = onMostRead
    this.#ahead = new ReadAhead(file.map.starts)
  }

  /** Whether the plain file is mounted, as far as we know: see `LayerFile.wasMounted` for what cannot be known. */
  get isPinned(): boolean {
    return this.#directMounts > 0
  }

  /**
   * Keeps every unit here while the plain file is mounted. Once for each such mount; dispose after the unmount. Check
   * that the file is complete before a new mount is made; one found at the start is pinned whatever is known of it.
   */
  pin(): Disposable {
    this.file.noteMount()
    this.#directMounts += 1
    let pinned = true
    return {
      [Symbol.dispose]: () => {
        if (pinned) this.#directMounts -= 1
        pinned = false
      },
    }
  }

  /**
   * All bytes of `range` of the layer file; the array belongs to the caller. Rejects with LayerError OUT_OF_RANGE if
   * they are not in it, and with the BlockError or LayerError of a unit that cannot be had.
   */
  async read(range: ByteRange, request: ReadRequest): Promise<Buffer> {
    this.#checkRange(range)
    // Not zeroed: every byte is written below. What is not touched yet, while the network is slow, takes no memory.
    const bytes = Buffer.allocUnsafeSlow(range.end - range.start)
    await this.readInto(range, () => bytes, request)
    return bytes
  }

  /**
   * As `read`, into the caller's memory, each time the same, which is as long as `range`. It holds rubbish until it resolves; if it rejects,
   * parts of it may still come.
   */
  async readInto(range: ByteRange, into: Destination, request: ReadRequest): Promise<void> {
    this.#checkRange(range)
    if (range.start === range.end) return
    const all = unitsOf(this.file, range)
    // Where the disk fails, unit by unit: it may be one of them.
    const isHere = all.every((unit) => this.file.has(unit))
    if (isHere && (await this.file.readPresent(range, into()).catch(() => false))) return
    for (let units = all; units.length > 0; ) {
      const served = await Promise.all(
        units.map((unit) => this.#readUnit(unit, range, into, request)),
      )
      // What was taken away while it was read is asked for again.
      units = units.filter((_, index) => served[index] === false)
    }
  }

  /**
   * Somebody who knows which units are going to be read fetches these: a reader who waits for one of them, perhaps from front to back, is
   * no sign that he wants what comes behind it as well. Until it is disposed of.
   */
  expect(units: ReadonlySet<number>): Disposable {
    this.#expected.add(units)
    return { [Symbol.dispose]: () => void this.#expected.delete(units) }
  }

  /** Makes sure that a unit is here, unless the disk is full. Rejects as `read`. */
  async fill(unit: number, request: ReadRequest): Promise<void> {
    if (!this.file.has(unit)) await this.#fetch(unit, request)
  }

  /** Ends every read that still waits, makes durable what arrived, and closes the files. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed.abort()
    await this.file[Symbol.asyncDispose]()
  }

  #checkRange(range: ByteRange): void {
    const { layerSize } = this.file.map
    if (range.start < 0 || range.end < range.start || range.end > layerSize) {
      throw new LayerError(
        'OUT_OF_RANGE',
        `bytes ${range.start} to ${range.end} are not in layer ${this.name} of ${layerSize} bytes`,
        { layer: this.name, start: range.start, end: range.end, layerSize },
      )
    }
  }

  /** Puts the unit's part of `range` into its place; false if it has to be tried again. */
  async #readUnit(
    unit: number,
    range: ByteRange,
    into: Destination,
    request: ReadRequest,
  ): Promise<boolean> {
    const whole = unitRange(this.file.map, unit)
    const part = { start: Math.max(whole.start, range.start), end: Math.min(whole.end, range.end) }
    const place = (): Uint8Array =>
      into().subarray(part.start - range.start, part.end - range.start)
    const copy = (bytes: Uint8Array): void =>
      place().set(bytes.subarray(part.start - whole.start, part.end - whole.start))
    if (this.file.isUnchecked(unit)) await this.file.check(unit)
    if (this.file.has(unit)) {
      try {
        return await this.file.readPresent(part, place())
      } catch (error) {
        const anew = await this.#fetchAgain(unit, request)
        await this.file.replace(unit, anew, error)
        copy(anew)
        return true
      }
    }
    const fetching = this.#fetchWatched(unit, part, request)
    // Behind it: it comes first in the queue.
    if (request.priority === 'foreground') this.#goAhead(unit, part.end - part.start)
    // From memory: on a full disk, or when the cache is too small for what is read, it may be gone from the layer file.
    copy(await fetching)
    this.file.noteUse(unit)
    return true
  }

  /** A reader waits for some bytes of a unit: fetches what it will most likely want next. */
  #goAhead(unit: number, bytes: number): void {
    this.#wantedBytes += bytes
    const isExpected = [...this.#expected].some((units) => units.has(unit))
    for (const next of isExpected ? [] : this.#ahead.waitedFor(unit)) {
      const { start, end } = unitRange(this.file.map, next)
      this.#wantedBytes += end - start
      // Whoever reads it says what is wrong with it.
      this.fill(next, { priority: 'prefetch', signal: this.#closed.signal }).catch(() => undefined)
    }
    if (this.#isMostRead || this.#wantedBytes <= MOST_OF_A_LAYER * this.file.map.layerSize) return
    this.#isMostRead = true
    this.#onMostRead(this)
  }

  /** The bytes of a unit that is here, as they were published, whatever the disk has. */
  async #fetchAgain(unit: number, { priority, signal }: ReadRequest): Promise<Uint8Array> {
    const source = this.#source.origin ?? this.#source
    const bytes = await this.#queue.run(
      `unit ${unit} of layer ${this.name} again`,
      priority,
      (turn) => source.fetchUnit(unit, turn),
      AbortSignal.any([signal, this.#closed.signal]),
    )
    return this.#checked(unit, bytes)
  }

  async #fetchWatched(unit: number, part: ByteRange, request: ReadRequest): Promise<Fetched> {
    if (request.priority !== 'foreground') return this.#fetch(unit, request)
    const [startedMs, started] = [Date.now(), performance.now()]
    const tell = (error: unknown): void =>
      this.#onWait({
        inode: this.inode,
        unit,
        offset: part.start,
        length: part.end - part.start,
        startedMs,
        durationMs: performance.now() - started,
        pid: request.pid,
        error,
      })
    try {
      const fetched = await this.#fetchPatiently(unit, request)
      tell(undefined)
      return fetched
    } catch (error) {
      tell(error)
      throw error
    }
  }

  /**
   * A page fault waits for a registry that is down, or that wants credentials which somebody may renew, until its deadline. It
   * asks again and again from here, since its place in the queue is needed by those that can be served.
   */
  async #fetchPatiently(unit: number, request: ReadRequest): Promise<Fetched> {
    const endMs = performance.now() + this.#queue.deadlineMs.foreground
    const signal = AbortSignal.any([request.signal, this.#closed.signal])
    for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)) {
      try {
        return await this.#fetch(unit, request)
      } catch (error) {
        const isOver = signal.aborted || performance.now() + pauseMs > endMs
        if (isOver || !isPassing(error)) throw error
      }
      // Ended early, it is asked once more and says why it is over.
      await setTimeout(pauseMs, undefined, { signal }).catch(() => undefined)
    }
  }

  #fetch(unit: number, { priority, signal }: ReadRequest): Promise<Fetched> {
    return this.#queue.run(
      `unit ${unit} of layer ${this.name}`,
      priority,
      (turn) => this.#fetchAndKeep(unit, turn),
      AbortSignal.any([signal, this.#closed.signal]),
    )
  }

  async #fetchAndKeep(unit: number, turn: FetchRequest): Promise<Fetched> {
    const { start, end } = unitRange(this.file.map, unit)
    const into = this.#memory.take(end - start)
    try {
      const bytes = this.#checked(unit, await this.#source.fetchUnit(unit, turn, into))
      if (!this.#closed.signal.aborted) {
        await this.file.keep(unit, bytes)
        this.#onArrival(this, bytes.length)
      }
      return bytes
    } finally {
      // All who wait for it are told in this turn, and copy what they want.
      setImmediate(() => this.#memory.giveBack(into))
    }
  }

  #checked(unit: number, bytes: unknown): Uint8Array {
    const { start, end } = unitRange(this.file.map, unit)
    if (bytes instanceof Uint8Array && bytes.length === end - start) return bytes
    const got = bytes instanceof Uint8Array ? `${bytes.length} bytes` : 'no bytes'
    throw new LayerError(
      'DATA_LOSS',
      `unit ${unit} of layer ${this.name} came with ${got} instead of ${end - start}`,
      { layer: this.name, unit, expected: end - start },
    )
  }
}

function isPassing(error: unknown): boolean {
  if (!(error instanceof RegistryError)) return false
  return error.code === 'UNAVAILABLE' || error.code === 'PERMISSION_DENIED'
}

function unitsOf({ map }: LayerFile, range: ByteRange): number[] {
  const first = unitAt(map, range.start)
  const last = unitAt(map, range.end - 1)
  return Array.from({ length: last - first + 1 }, (_, index) => first + index)
}
