import { type FileHandle, open } from 'node:fs/promises'
import { crc32 } from 'node:zlib'

const MAGIC = 'IPDRUNIT'
const VERSION = 2
const HEADER_BYTES = 32
const CHECKSUM_BYTES = 4
/** Slots start at multiples of this, so that writing one never rewrites a disk sector of the other. */
const SLOT_ALIGNMENT = 4096

/** What is known of the units of a layer file: which are on disk, one bit each, lowest first, and what they should be. */
export type UnitsOnDisk = {
  readonly present: Int32Array
  /** CRC-32 of each unit that is present; of the others nothing is meant. */
  readonly checksums: Uint32Array
}

/**
 * Which units of a layer file are on disk and their checksums, on disk: two slots, the newer whole one counts.
 *
 * A slot is, little-endian: magic (8 bytes), version u32, units u32, sequence u64, CRC-32 of the units' boundaries u32,
 * CRC-32 of the slot without this field u32, then one bit a unit, lowest first, then a CRC-32 a unit, u32. Writing goes to
 * the older slot, in place: a torn write spoils that slot alone, and neither a rename nor a free disk block is needed.
 */
export class PresenceFile implements AsyncDisposable {
  readonly #handle: FileHandle
  readonly #units: number
  readonly #boundariesCrc: number
  #sequence: bigint

  private constructor(handle: FileHandle, units: number, boundariesCrc: number, sequence: bigint) {
    this.#handle = handle
    this.#units = units
    this.#boundariesCrc = boundariesCrc
    this.#sequence = sequence
  }

  /**
   * Opens the file, or makes it from `known`, and copies what it says into that. A file that is missing, damaged, of another
   * version or about other units says nothing.
   */
  static async open(path: string, starts: Float64Array, known: UnitsOnDisk): Promise<PresenceFile> {
    const units = Math.max(0, starts.length - 1)
    const boundariesCrc = crc32(new Uint8Array(starts.slice().buffer))
    const handle = await openOrCreate(path)
    try {
      const bytes = await handle.readFile()
      const slots = [0, 1].map((index) => {
        const at = index * slotBytes(units)
        return parseSlot(bytes.subarray(at, at + writtenBytes(units)), units, boundariesCrc)
      })
      const newest = slots
        .filter((slot) => slot !== undefined)
        .reduce<Slot | undefined>((a, b) => (a && a.sequence > b.sequence ? a : b), undefined)
      const file = new PresenceFile(handle, units, boundariesCrc, newest?.sequence ?? 0n)
      if (newest === undefined) await file.#reset(known)
      else {
        bytesOf(known.present).set(newest.bits)
        bytesOf(known.checksums).set(newest.checksums)
      }
      return file
    } catch (error) {
      await handle.close()
      throw error
    }
  }

  /** Writes what is on disk; once it resolves, a power cut does not undo it. Not to be called twice at once. */
  async write(known: UnitsOnDisk): Promise<void> {
    await this.#writeSlot(known)
    await this.#handle.datasync()
  }

  /** As `write`, to both slots: before bytes go away, so that no slot that may ever count still claims them. */
  async writeBoth(known: UnitsOnDisk): Promise<void> {
    await this.write(known)
    await this.write(known)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close()
  }

  /** Fills both slots, so that later writes need no new disk block. Until both are whole, none counts. */
  async #reset(known: UnitsOnDisk): Promise<void> {
    await this.#handle.truncate(0)
    for (let slot = 0; slot < 2; slot++) await this.#writeSlot(known)
    await this.#handle.sync()
  }

  async #writeSlot({ present, checksums }: UnitsOnDisk): Promise<void> {
    const sequence = this.#sequence + 1n
    const slot = Buffer.alloc(writtenBytes(this.#units))
    slot.write(MAGIC, 0, 'latin1')
    slot.writeUInt32LE(VERSION, 8)
    slot.writeUInt32LE(this.#units, 12)
    slot.writeBigUInt64LE(sequence, 16)
    slot.writeUInt32LE(this.#boundariesCrc, 24)
    slot.set(bytesOf(present), HEADER_BYTES)
    slot.set(bytesOf(checksums), HEADER_BYTES + bitmapBytes(this.#units))
    slot.writeUInt32LE(slotCrc(slot), 28)
    const at = Number(sequence % 2n) * slotBytes(this.#units)
    const { bytesWritten } = await this.#handle.write(slot, 0, slot.length, at)
    if (bytesWritten !== slot.length) {
      throw new Error(`wrote ${bytesWritten} of ${slot.length} bytes of the presence bitmap`)
    }
    this.#sequence = sequence
  }
}

type Slot = {
  readonly sequence: bigint
  readonly bits: Uint8Array
  readonly checksums: Uint8Array
}

function parseSlot(slot: Buffer, units: number, boundariesCrc: number): Slot | undefined {
  if (slot.length < writtenBytes(units)) return undefined
  if (slot.toString('latin1', 0, 8) !== MAGIC || slot.readUInt32LE(8) !== VERSION) return undefined
  if (slot.readUInt32LE(12) !== units || slot.readUInt32LE(24) !== boundariesCrc) return undefined
  if (slot.readUInt32LE(28) !== slotCrc(slot)) return undefined
  const checksumsAt = HEADER_BYTES + bitmapBytes(units)
  return {
    sequence: slot.readBigUInt64LE(16),
    bits: slot.subarray(HEADER_BYTES, checksumsAt),
    checksums: slot.subarray(checksumsAt),
  }
}

function slotCrc(slot: Buffer): number {
  return crc32(slot.subarray(HEADER_BYTES), crc32(slot.subarray(0, 28)))
}

function bitmapBytes(units: number): number {
  return Math.ceil(units / 32) * 4
}

/** Bytes of a slot, without what lies between it and the next. */
function writtenBytes(units: number): number {
  return HEADER_BYTES + bitmapBytes(units) + units * CHECKSUM_BYTES
}

function slotBytes(units: number): number {
  return Math.ceil(writtenBytes(units) / SLOT_ALIGNMENT) * SLOT_ALIGNMENT
}

/** Its memory, which is little-endian on every machine that Node runs on. */
function bytesOf({ buffer, byteOffset, byteLength }: Int32Array | Uint32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength)
}

async function openOrCreate(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'r+')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return open(path, 'wx+')
  }
}
