import { type FileHandle, mkdir, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { KernelError, LayerError } from '../errors.ts'
import {
  checksumOf,
  DATA_FILE,
  nothingOnDisk,
  PRESENCE_FILE,
  syncDirectory,
  writeWhole,
} from './layer-file.ts'
import type { LayerMap } from './layer-map.ts'
import { PresenceFile } from './presence-file.ts'
import { setPresent, unitCount, unitRange } from './shared-units.ts'

/**
 * Makes a whole layer file from a stream, for layers that can only be read from front to back; what their units are
 * is known at the end. Until it is sealed nothing in the directory counts, whenever the process dies.
 */
export class LayerFileWriter implements AsyncDisposable {
  readonly #dir: string
  readonly #data: FileHandle
  #written = 0
  #sealed = false

  private constructor(dir: string, data: FileHandle) {
    this.#dir = dir
    this.#data = data
  }

  /** Starts over in `dir`, whatever an earlier attempt left there. */
  static async create(dir: string): Promise<LayerFileWriter> {
    await mkdir(dir, { recursive: true, mode: 0o700 })
    for (const name of [PRESENCE_FILE, DATA_FILE]) await rm(join(dir, name), { force: true })
    await syncDirectory(dir)
    // A new file: the one that lay there may still be mounted.
    return new LayerFileWriter(dir, await open(join(dir, DATA_FILE), 'wx+', 0o600))
  }

  /** Appends bytes of the layer file. Rejects with KernelError RESOURCE_EXHAUSTED if the disk is full. */
  async write(bytes: Uint8Array): Promise<void> {
    try {
      await writeWhole(this.#data, bytes, this.#written)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
      throw new KernelError(
        'RESOURCE_EXHAUSTED',
        `the disk is full after ${this.#written} bytes of the layer file in ${this.#dir}; free space or lower the size of the cache`,
        { dir: this.#dir, bytes: this.#written },
        error,
      )
    }
    this.#written += bytes.length
  }

  /**
   * Calls the layer file complete, with the units that `map` names, and makes that durable. `LayerFile.open` takes
   * over then. Rejects with LayerError DATA_LOSS if the map is about another number of bytes.
   */
  async seal(map: LayerMap): Promise<void> {
    if (map.layerSize !== this.#written) {
      throw new LayerError(
        'DATA_LOSS',
        `${this.#written} bytes of a layer file came, its map says ${map.layerSize}`,
        { dir: this.#dir, bytes: this.#written, expected: map.layerSize },
      )
    }
    await this.#data.datasync()
    const known = nothingOnDisk(map.starts)
    for (let unit = 0; unit < unitCount(map.starts); unit++) {
      // Only now it is known where units begin: read again, most likely from memory.
      known.checksums[unit] = await checksumOf(this.#data, unitRange(map, unit))
      setPresent(known, unit)
    }
    const path = join(this.#dir, PRESENCE_FILE)
    await using _presence = await PresenceFile.open(path, map.starts, known)
    await syncDirectory(this.#dir)
    this.#sealed = true
  }

  /** Closes the file; if it was not sealed, the directory goes. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#data.close()
    if (!this.#sealed) await rm(this.#dir, { recursive: true, force: true })
  }
}
