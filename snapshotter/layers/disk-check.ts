import { open } from 'node:fs/promises'
import type { BlobStore } from '../blobs/blob-store.ts'
import type { LazyLayer } from '../blobs/lazy-layer.ts'
import { unitCount } from '../blobs/shared-units.ts'
import { CodedError, LayerError } from '../errors.ts'
import { dropCached } from '../kernel/libc.ts'
import type { Log } from '../log.ts'
import type { LayerRecord } from './catalog.ts'
import type { LayerBuilder } from './layer-builder.ts'
import type { LayerMounts } from './layer-mounts.ts'
import { fuseInode, type LayerPlaces } from './layer-places.ts'
import { verifyLayer } from './layer-verifier.ts'

/** Units read, or fetched again, at once. 8 keep a 100 Mbit/s link busy at 50 ms a round trip. */
const UNITS_AT_ONCE = 8

type Parts = {
  readonly places: LayerPlaces
  readonly store: BlobStore
  readonly builder: LayerBuilder
  readonly mounts: LayerMounts
  readonly log: Log
}

/** Finds out what a disk has damaged since it was written, and heals it. */
export class DiskCheck {
  readonly #parts: Parts
  /** Layers whose tables were written, or found to be what was written, since this process started. */
  readonly #sound = new Set<number>()

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Says that the tables of a layer were written just now. */
  noteWritten(layer: number): void {
    this.#sound.add(layer)
  }

  /** Forgets a layer that was removed: its number may go to another. */
  forget(layer: number): void {
    this.#sound.delete(layer)
  }

  /**
   * Checks the tables of a layer that is about to be mounted, once in the life of the process, and makes them again if they are damaged.
   * Resolves to `lost` if that takes its blob. Rejects with what the disk says.
   */
  async tables(record: LayerRecord, signal: AbortSignal): Promise<'sound' | 'remade' | 'lost'> {
    const { id, blobDigest } = record
    const { builder, mounts, log } = this.#parts
    if (this.#sound.has(id)) return 'sound'
    const state = await builder.checkFiles(record, this.#held(record), signal)
    if (state === 'remade') {
      mounts.release(id)
      log.error(
        { layer: blobDigest },
        `the disk had damaged the names and modes of layer ${blobDigest}; they were made again, but containers that run on it may have seen wrong ones: restart their pods, and look at the disk's health`,
      )
    }
    if (state !== 'lost') this.#sound.add(id)
    return state
  }

  /** Has what is checked next of a layer come from the disk, not from memory. Rejects with what the disk says. */
  async doubt(record: LayerRecord): Promise<void> {
    const { id } = record
    const { places } = this.#parts
    await dropCachedPaths(places.tocPath(id), places.metadataPath(id))
    await this.#held(record).file.dropCached()
    this.#sound.delete(id)
  }

  /** Has the tables of a layer be checked once more before they are used. */
  doubtTables({ id }: LayerRecord): void {
    this.#sound.delete(id)
  }

  /**
   * Compares all that is here of a layer with what was written, and fetches again what the disk has damaged. Resolves to how many
   * units that were. Rejects with BlockError or LayerError if they cannot be had: they are missing then.
   */
  async units(record: LayerRecord, signal: AbortSignal): Promise<number> {
    const { blobDigest } = record
    const { mounts, log } = this.#parts
    const held = this.#held(record)
    const damaged = await damagedUnits(held, signal)
    if (damaged.length === 0) return 0
    // What the kernel has read through a mount, it keeps for the mount.
    mounts.release(record.id)
    log.error(
      { layer: blobDigest, units: damaged.length },
      `the disk had damaged ${damaged.length} parts of layer ${blobDigest}; they are fetched again, but containers that run on it may have read wrong bytes: restart their pods, and look at the disk's health`,
    )
    try {
      await atOnce(damaged, (unit) => held.fill(unit, { priority: 'background', signal }))
    } catch (error) {
      signal.throwIfAborted()
      throw notFetched(record, error)
    }
    return damaged.length
  }

  /**
   * Reads all of a layer that was found to be what its image promised, and finds that so again. Rejects with LayerError DATA_LOSS if it
   * is not: then the disk does not keep what is written.
   */
  async whole(record: LayerRecord, signal: AbortSignal): Promise<void> {
    const { builder, log } = this.#parts
    const { id, diffId, blobDigest } = record
    try {
      const promised = { diffId, toc: await builder.toc(id) }
      if ((await verifyLayer(this.#held(record), promised, signal)).kind === 'intact') return
    } catch (error) {
      signal.throwIfAborted()
      // The disk cannot read it, or it is no tar any more.
      log.warn({ layer: blobDigest, reason: String(error) }, `reading layer ${blobDigest} failed`)
    }
    throw doesNotKeep(record)
  }

  #held({ id, blobDigest }: LayerRecord): LazyLayer {
    const held = this.#parts.store.get(fuseInode(id))
    if (held === undefined) {
      throw new LayerError('NOT_FOUND', `layer ${blobDigest} is not on this node`, {
        digest: blobDigest,
      })
    }
    return held
  }
}

/** Of a layer that the disk goes on to damage while it is healed. */
export function doesNotKeep({ blobDigest }: LayerRecord): LayerError {
  return new LayerError(
    'DATA_LOSS',
    `layer ${blobDigest} is damaged on this disk, and stays so after its bytes were written again: replace the disk`,
    { digest: blobDigest },
  )
}

/** Units that are not what was written; they are missing from now on. */
async function damagedUnits({ file }: LazyLayer, signal: AbortSignal): Promise<number[]> {
  const damaged: number[] = []
  await atOnce(Array(unitCount(file.map.starts)).keys(), async (unit) => {
    signal.throwIfAborted()
    if ((await file.check(unit)) === 'damaged') damaged.push(unit)
  })
  return damaged
}

async function atOnce(
  units: Iterable<number>,
  work: (unit: number) => Promise<void>,
): Promise<void> {
  const left = units[Symbol.iterator]()
  const workNext = async (): Promise<void> => {
    for (let next = left.next(); next.done !== true; next = left.next()) await work(next.value)
  }
  await Promise.all(Array.from({ length: UNITS_AT_ONCE }, workNext))
}

function notFetched({ blobDigest }: LayerRecord, error: unknown): LayerError {
  const reason = error instanceof Error ? error.message : String(error)
  return new LayerError(
    error instanceof CodedError ? error.code : 'INTERNAL',
    `layer ${blobDigest} is damaged on this disk, and its bytes cannot be fetched again: ${reason}`,
    { digest: blobDigest },
    error,
  )
}

/** Of what is not there, nothing is in memory. */
async function dropCachedPaths(...paths: readonly string[]): Promise<void> {
  for (const path of paths) {
    try {
      await using file = await open(path, 'r')
      await file.datasync()
      dropCached(file.fd)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
  }
}
