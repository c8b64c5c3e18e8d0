import { constants, readFileSync, writeFileSync } from 'node:fs'
import { type FileHandle, mkdir, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import type { ByteRange } from '../byte-range.ts'
import { KernelError, LayerError } from '../errors.ts'
import { dropCached, punchHole } from '../kernel/libc.ts'
import type { Log } from '../log.ts'
import type { LayerMap } from './layer-map.ts'
import { PresenceFile, type UnitsOnDisk } from './presence-file.ts'
import {
  clearPresent,
  isPresent,
  type SharedUnits,
  setPresent,
  shareUnits,
  unitCount,
  unitRange,
  useIfPresent,
} from './shared-units.ts'

/** The name of the file of bytes and of the file that says which are there, in a layer's directory. */
export const DATA_FILE = 'data'
export const PRESENCE_FILE = 'present'
/** And of the file that holds the kernel's boot ID if the file of bytes was mounted since. */
const MOUNTED_FILE = 'mounted'
const BOOT_ID = '/proc/sys/kernel/random/boot_id'

/** Bytes of a block of the file system under us. A hole that covers no whole block frees nothing. */
const DISK_BLOCK_BYTES = 4096

/** Bytes that are checked in one go. 1 MiB: 0.3 ms of the event loop. */
const PIECE_BYTES = 1024 ** 2

/** Failures of write(2) that mean: no room. The cache does without, nobody's read fails. */
const NO_ROOM: readonly (string | undefined)[] = ['ENOSPC', 'EDQUOT', 'EFBIG']

/** What the disk has of a unit: what was written, something else, or nothing that counts. */
export type UnitState = 'sound' | 'damaged' | 'missing'

/**
 * One layer file on disk, as far as it has arrived: a directory with a sparse file of its bytes and a file that says
 * which units are there. A unit that the disk calls present is durable, and was written whole. What an earlier process
 * left is compared with its checksum before anybody is served it: a disk damages what was right when it was written.
 */
export class LayerFile implements AsyncDisposable {
  readonly dir: string
  readonly map: LayerMap
  /** What serving threads see of this file. */
  readonly units: SharedUnits
  readonly #data: FileHandle
  readonly #presence: PresenceFile
  readonly #log: Log
  readonly #checksums: Uint32Array
  /** One bit a unit that an earlier process left here, and nobody has looked at since: it is here, but not for `units.present`. */
  readonly #unchecked: Int32Array
  readonly #checking = new Map<number, Promise<UnitState>>()
  readonly #writing = new Set<number>()
  #missing: number
  #presentBytes: number
  #changed = false
  #notKept = 0
  /** Reads that the disk failed. */
  #unreadable = 0
  #damaged = 0
  #full = false
  #isClosed = false
  #wasMounted: boolean
  #persisting: Promise<void> = Promise.resolve()

  private constructor(
    { dir, map, units }: { dir: string; map: LayerMap; units: SharedUnits },
    { data, presence, log }: { data: FileHandle; presence: PresenceFile; log: Log },
    found: UnitsOnDisk,
  ) {
    this.dir = dir
    this.map = map
    this.units = units
    this.#data = data
    this.#presence = presence
    this.#log = log
    this.#checksums = found.checksums
    this.#unchecked = found.present
    this.#wasMounted = mountedSinceBoot(dir)
    const missing = this.missingUnits()
    this.#missing = missing.length
    this.#presentBytes = missing.reduce(
      (bytes, unit) => bytes - this.#unitBytes(unit),
      map.layerSize,
    )
  }

  /**
   * Opens the layer file in `dir`, which is made if it is not there. What cannot be trusted counts as missing: a
   * damaged bitmap, one about other units, a file of bytes that is not as long as the layer.
   * Rejects with LayerError INVALID_ARGUMENT if the map is none, and with what the disk says.
   */
  static async open(dir: string, map: LayerMap, { log }: { log: Log }): Promise<LayerFile> {
    checkStarts(map)
    await mkdir(dir, { recursive: true, mode: 0o700 })
    const dataPath = join(dir, DATA_FILE)
    const units = shareUnits(dataPath, map.starts)
    await using opened = new AsyncDisposableStack()
    const data = opened.use(await open(dataPath, constants.O_RDWR | constants.O_CREAT, 0o600))
    const found = nothingOnDisk(map.starts)
    const presence = opened.use(
      await PresenceFile.open(join(dir, PRESENCE_FILE), map.starts, found),
    )
    const { size } = await data.stat()
    if (size !== map.layerSize) {
      if (found.present.some((bits) => bits !== 0)) {
        log.warn(
          { dir, bytes: size, expected: map.layerSize },
          `the cached layer file in ${dir} has ${size} bytes instead of ${map.layerSize}: it is fetched again`,
        )
      }
      found.present.fill(0)
      await presence.writeBoth(found)
      await data.truncate(map.layerSize)
    }
    await syncDirectory(dir)
    opened.move()
    return new LayerFile({ dir, map, units }, { data, presence, log }, found)
  }

  /** Bytes of the units that are here. */
  get presentBytes(): number {
    return this.#presentBytes
  }

  /** Whether every unit is here. */
  get isComplete(): boolean {
    return this.#missing === 0
  }

  /** How many units were fetched but not kept because the disk was full. */
  get notKept(): number {
    return this.#notKept
  }

  /** Whether `flush` has something to write. */
  get isChanged(): boolean {
    return this.#changed
  }

  /**
   * Whether the file of bytes was mounted since the machine booted, by any process: the kernel may read it behind our
   * back for as long, whatever was unmounted, since a running container holds on to its mounts. So no byte of it goes.
   */
  get wasMounted(): boolean {
    return this.#wasMounted
  }

  /** Notes that the file of bytes is about to be mounted. Throws what the disk says. */
  noteMount(): void {
    if (this.#wasMounted) return
    writeFileSync(join(this.dir, MOUNTED_FILE), readFileSync(BOOT_ID))
    this.#wasMounted = true
  }

  /** Whether a unit is here, as far as is known: see `check`. */
  has(unit: number): boolean {
    return isPresent(this.units, unit) || isPresent({ present: this.#unchecked }, unit)
  }

  /** Whether a unit is here that `check` has to look at before it is read. */
  isUnchecked(unit: number): boolean {
    return isPresent({ present: this.#unchecked }, unit)
  }

  missingUnits(): number[] {
    return [...Array(unitCount(this.map.starts)).keys()].filter((unit) => !this.has(unit))
  }

  /**
   * Compares what the disk has of a unit with its checksum. One that is damaged, or cannot be read, is missing from then on,
   * and threads that may have read it since look again; the log says so once. Rejects with LayerError ABORTED once it is closed.
   */
  check(unit: number): Promise<UnitState> {
    const running = this.#checking.get(unit)
    if (running !== undefined) return running
    const checking = this.#check(unit).finally(() => this.#checking.delete(unit))
    this.#checking.set(unit, checking)
    return checking
  }

  /**
   * Copies the bytes of `range` to the start of `into`. Resolves to false, `into` then holds rubbish, if a unit of it
   * is missing, unchecked, or was taken away meanwhile. Rejects if the disk fails.
   */
  async readPresent(range: ByteRange, into: Uint8Array): Promise<boolean> {
    const evictions = Atomics.load(this.units.evictions, 0)
    if (!useIfPresent(this.units, range, Math.floor(Date.now() / 1000))) return false
    for (let at = range.start; at < range.end; ) {
      const { bytesRead } = await this.#data.read(into, at - range.start, range.end - at, at)
      if (bytesRead === 0) {
        throw new LayerError(
          'DATA_LOSS',
          `the cached layer file in ${this.dir} ends at ${at}, ${this.map.layerSize} bytes were written: something else cut it short`,
          { dir: this.dir, offset: at },
        )
      }
      at += bytesRead
    }
    return Atomics.load(this.units.evictions, 0) === evictions
  }

  /**
   * Writes the bytes of a unit, exactly as long as it, and then calls it present. If they cannot be written the unit
   * stays missing: that is counted, and logged once until an eviction makes room; it is no failure of the read.
   * Not to be called twice at once for one unit.
   */
  async keep(unit: number, bytes: Uint8Array): Promise<void> {
    if (this.has(unit)) return
    this.#writing.add(unit)
    try {
      await writeWhole(this.#data, bytes, unitRange(this.map, unit).start)
      this.#checksums[unit] = crc32(bytes)
      // A second ago: a read of it, from now on, is later than that, so it can be told whether it was of use.
      this.units.lastUse[unit] = Math.floor(Date.now() / 1000) - 1
      setPresent(this.units, unit)
      this.#missing -= 1
      this.#presentBytes += bytes.length
      this.#changed = true
    } catch (error) {
      this.#notKept += 1
      if (!this.#full) {
        const why = NO_ROOM.includes((error as NodeJS.ErrnoException).code)
          ? 'the disk is full'
          : String(error)
        this.#log.warn(
          { dir: this.dir, unit, bytes: bytes.length },
          `fetched bytes are served but not kept in ${this.dir}: ${why}`,
        )
      }
      this.#full = true
    } finally {
      this.#writing.delete(unit)
    }
  }

  /**
   * Puts `bytes` in the place of a unit that is here, where the disk has others or cannot read it. Resolves to whether that was so.
   * Not while the unit is evicted. Rejects with what the disk says.
   */
  async rewrite(unit: number, bytes: Uint8Array): Promise<boolean> {
    const onDisk = Buffer.allocUnsafeSlow(bytes.length)
    const isRead = await this.readPresent(unitRange(this.map, unit), onDisk).catch(() => false)
    if (!this.has(unit) || (isRead && onDisk.equals(bytes))) return false
    await writeWhole(this.#data, bytes, unitRange(this.map, unit).start)
    await this.#data.datasync()
    return true
  }

  /** Writes a unit that the disk could not read, if it takes it; says so once, since a disk that fails does not fail once. */
  async replace(unit: number, bytes: Uint8Array, failure: unknown): Promise<void> {
    const reason = failure instanceof Error ? failure.message : String(failure)
    const isTaken = await this.rewrite(unit, bytes).catch(() => undefined)
    if (this.#unreadable++ > 0) return
    this.#log.error(
      { dir: this.dir, unit, reason },
      `the disk could not read bytes in ${this.dir} (${reason}): they were fetched again, and ${isTaken === undefined ? 'the disk does not take them' : 'are on it again'}; look at the disk, and run ipdr cache check`,
    )
  }

  /** Makes the next reads come from the disk rather than from memory, to find out what the disk really has. */
  async dropCached(): Promise<void> {
    await this.#data.datasync()
    dropCached(this.#data.fd)
  }

  /** When a unit was last read or, if it never was, a second before it came: seconds since the epoch, roughly. */
  lastUseSec(unit: number): number {
    return this.units.lastUse[unit] ?? 0
  }

  /** Says that a unit was read now, by somebody who got its bytes from memory. */
  noteUse(unit: number): void {
    this.units.lastUse[unit] = Math.floor(Date.now() / 1000)
  }

  /**
   * Gives the disk space of units back. First nobody may read them any more, then the disk may not call them present
   * any more, then they go: a thread that is reading one sees `evictions` rise and asks the main thread instead.
   * Resolves to the bytes of those that were here. Nothing goes from a file that `wasMounted`.
   */
  async evict(units: readonly number[]): Promise<number> {
    const taken = this.#wasMounted ? [] : units.filter((unit) => this.has(unit))
    if (taken.length === 0) return 0
    this.#forget(taken)
    await this.#persist((known) => this.#presence.writeBoth(known))
    for (const unit of taken) {
      // Somebody may have wanted it again while the disk was busy.
      if (this.#isAbsent(unit)) punchHole(this.#data.fd, this.#withFreeEdges(unit))
    }
    this.#full = false
    return taken.reduce((bytes, unit) => bytes + this.#unitBytes(unit), 0)
  }

  /**
   * Gives back what the disk holds of missing units: a crash leaves bytes behind that nothing vouches for.
   * Resolves to how many bytes that were.
   */
  async reclaim(): Promise<number> {
    if (this.#wasMounted) return 0
    await this.#persist((known) => this.#presence.writeBoth(known))
    const before = await this.diskBytes()
    for (const unit of this.missingUnits()) {
      if (this.#isAbsent(unit)) punchHole(this.#data.fd, this.#withFreeEdges(unit))
    }
    return Math.max(0, before - (await this.diskBytes()))
  }

  /** Makes durable what is here. Rejects with what the disk says; what was durable before stays so. */
  async flush(): Promise<void> {
    if (!this.#changed) return
    await this.#persist((known) => this.#presence.write(known))
  }

  /** Bytes that the file takes on disk. */
  async diskBytes(): Promise<number> {
    const { blocks } = await this.#data.stat()
    return blocks * 512
  }

  /**
   * Removes the directory. The space is given back at once, though serving threads may hold the file open until their
   * next request, or if it `wasMounted`, when its last user is gone. Close it afterwards.
   */
  async delete(): Promise<void> {
    await rm(this.dir, { recursive: true, force: true })
    this.#changed = false
    if (this.#wasMounted) return
    this.units.present.fill(0)
    this.#unchecked.fill(0)
    Atomics.add(this.units.evictions, 0, 1)
    await this.#data.truncate(0)
  }

  /** Makes durable what is here, as far as the disk lets us, and closes the files. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    try {
      await this.flush()
    } catch (error) {
      this.#log.warn(
        { dir: this.dir },
        `what was fetched last into ${this.dir} is fetched again after a restart: ${String(error)}`,
      )
    }
    await this.#presence[Symbol.asyncDispose]()
    await this.#data.close()
  }

  /**
   * Writes the bitmap as it is when its turn comes, after the bytes that it vouches for. One after another: an older
   * state must not be written over a newer one.
   */
  async #persist(write: (known: UnitsOnDisk) => Promise<void>): Promise<void> {
    const before = this.#persisting
    const work = async (): Promise<void> => {
      await before
      const present = this.units.present.map((bits, word) => bits | (this.#unchecked[word] ?? 0))
      this.#changed = false
      try {
        await this.#data.datasync()
        await write({ present, checksums: this.#checksums })
      } catch (error) {
        this.#changed = true
        throw error
      }
    }
    const done = work()
    this.#persisting = done.catch(() => undefined)
    await done
  }

  async #check(unit: number): Promise<UnitState> {
    for (;;) {
      if (!this.has(unit)) return 'missing'
      const evictions = Atomics.load(this.units.evictions, 0)
      const checksum = await checksumOf(this.#data, unitRange(this.map, unit)).catch(
        () => undefined,
      )
      if (this.#isClosed) {
        throw new LayerError('ABORTED', `the layer file in ${this.dir} is closed`, {
          dir: this.dir,
        })
      }
      // What went meanwhile may have been read as zeros, and may be here again.
      if (Atomics.load(this.units.evictions, 0) !== evictions) continue
      if (checksum !== this.#checksums[unit]) break
      clearPresent({ present: this.#unchecked }, unit)
      setPresent(this.units, unit)
      return 'sound'
    }
    this.#forget([unit])
    this.#changed = true
    if (this.#damaged++ === 0) {
      this.#log.error(
        { dir: this.dir, unit },
        `the disk has damaged bytes in ${this.dir}: they are fetched again; look at the disk, and run ipdr cache check`,
      )
    }
    return 'damaged'
  }

  /** Says that units are no longer here: nobody starts to read them, and who is reading one finds out. */
  #forget(units: readonly number[]): void {
    for (const unit of units) {
      clearPresent({ present: this.#unchecked }, unit)
      clearPresent(this.units, unit)
      this.#missing += 1
      this.#presentBytes -= this.#unitBytes(unit)
    }
    Atomics.add(this.units.evictions, 0, 1)
  }

  /** The unit's bytes, and those up to the edges of its disk blocks where nothing present lies there. */
  #withFreeEdges(unit: number): ByteRange {
    const { start, end } = unitRange(this.map, unit)
    const floor = start - (start % DISK_BLOCK_BYTES)
    const ceiling = Math.ceil(end / DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES
    let [first, last] = [unit, unit]
    while (unitRange(this.map, first).start > floor && this.#isAbsent(first - 1)) first -= 1
    while (unitRange(this.map, last).end < ceiling && this.#isAbsent(last + 1)) last += 1
    const reachesEnd = last >= unitCount(this.map.starts) - 1
    return {
      start: Math.max(floor, unitRange(this.map, first).start),
      end: reachesEnd ? ceiling : Math.min(ceiling, unitRange(this.map, last).end),
    }
  }

  #isAbsent(unit: number): boolean {
    return unit < unitCount(this.map.starts) && !this.has(unit) && !this.#writing.has(unit)
  }

  #unitBytes(unit: number): number {
    const { start, end } = unitRange(this.map, unit)
    return end - start
  }
}

/** What is known of units of which none is on disk. */
export function nothingOnDisk(starts: Float64Array): UnitsOnDisk {
  const units = unitCount(starts)
  return {
    present: new Int32Array(Math.ceil(units / 32)),
    checksums: new Uint32Array(units),
  }
}

/** The checksum of a range of a file, as `PresenceFile` keeps it. Rejects if the file is shorter, and with what the disk says. */
export async function checksumOf(file: FileHandle, { start, end }: ByteRange): Promise<number> {
  const piece = Buffer.allocUnsafeSlow(Math.min(PIECE_BYTES, end - start))
  let checksum = 0
  for (let at = start; at < end; ) {
    const { bytesRead } = await file.read(piece, 0, Math.min(piece.length, end - at), at)
    if (bytesRead === 0) throw new KernelError('INTERNAL', `a layer file ends at ${at}`)
    checksum = crc32(piece.subarray(0, bytesRead), checksum)
    at += bytesRead
  }
  return checksum
}

/** Writes all of `bytes` at `position`. Rejects with what write(2) says. */
export async function writeWhole(
  file: FileHandle,
  bytes: Uint8Array,
  position: number,
): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, position + done)
    if (bytesWritten === 0) throw new KernelError('INTERNAL', 'write(2) wrote nothing')
    done += bytesWritten
  }
}

/** Makes the names in a directory durable. */
export async function syncDirectory(dir: string): Promise<void> {
  await using handle = await open(dir, constants.O_RDONLY | constants.O_DIRECTORY)
  await handle.sync()
}

function mountedSinceBoot(dir: string): boolean {
  try {
    return readFileSync(join(dir, MOUNTED_FILE)).equals(readFileSync(BOOT_ID))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw error
  }
}

function checkStarts({ starts, layerSize }: LayerMap): void {
  const whole = starts.every(Number.isSafeInteger)
  const ascending = starts.every((start, unit) => unit === 0 || start > (starts[unit - 1] ?? 0))
  if (whole && ascending && starts[0] === 0 && starts.at(-1) === layerSize) return
  throw new LayerError(
    'INVALID_ARGUMENT',
    `a layer map of ${starts.length} boundaries does not lead from 0 to ${layerSize} in ascending steps`,
    { boundaries: starts.length, layerSize },
  )
}
