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
import { StreamedLayerMap } from './streamed-layer-map.ts'

/** Units fetched again at once. 8 keep a 100 Mbit/s link busy at 50 ms a round trip. */
const FETCHED_AT_ONCE = 8

/** What a disk still had of the bytes of a layer, which were right when they were written. */
export type CheckedBytes = {
  /** Whether they were checked: only of a layer of which none is missing can that be done. */
  readonly isWhole: boolean
  /** Units that had to be fetched again. */
  readonly healedUnits: number
}

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

  /**
   * Reads all of a layer, checks it, and fetches again what is damaged. Rejects with LayerError DATA_LOSS if the disk does not keep what is
   * written, and with BlockError or LayerError if the bytes cannot be had.
   */
  async bytes(record: LayerRecord, signal: AbortSignal): Promise<CheckedBytes> {
    const { id, blobDigest } = record
    const { builder, mounts, log } = this.#parts
    const held = this.#held(record)
    // What was never checked says nothing of the disk.
    if (!held.file.isComplete || !record.verified) return { isWhole: false, healedUnits: 0 }
    const promised = { diffId: record.diffId, toc: await builder.toc(id) }
    const isIntact = async (): Promise<boolean> => {
      try {
        return (await verifyLayer(held, promised, signal)).kind === 'intact'
      } catch (error) {
        signal.throwIfAborted()
        // The disk cannot read it, or it is no tar any more.
        log.warn({ layer: blobDigest, reason: String(error) }, `reading layer ${blobDigest} failed`)
        return false
      }
    }
    if (await isIntact()) return { isWhole: true, healedUnits: 0 }
    const healedUnits = await fetchAgain(held, signal).catch((error: unknown) => {
      signal.throwIfAborted()
      throw notFetched(record, error)
    })
    // What the kernel has read through a mount, it keeps for the mount.
    mounts.release(id)
    log.error(
      { layer: blobDigest, units: healedUnits },
      `the disk had damaged ${healedUnits} parts of layer ${blobDigest}; they were fetched again, but containers that run on it may have read wrong bytes: restart their pods, and look at the disk's health`,
    )
    if (await isIntact()) return { isWhole: true, healedUnits }
    throw new LayerError(
      'DATA_LOSS',
      `layer ${blobDigest} is damaged on this disk, and stays so after its bytes were written again: replace the disk`,
      { digest: blobDigest },
    )
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

/** Resolves to how many units of a complete layer had other bytes than where it was published. */
async function fetchAgain(held: LazyLayer, signal: AbortSignal): Promise<number> {
  if (held.file.map instanceof StreamedLayerMap) {
    throw new LayerError(
      'FAILED_PRECONDITION',
      'a zstd layer without an index cannot be read in parts: remove the image and pull it again',
    )
  }
  let healed = 0
  const units = Array(unitCount(held.file.map.starts)).keys()
  const healNext = async (): Promise<void> => {
    for (const unit of units) {
      if (await held.repair(unit, { priority: 'background', signal })) healed += 1
    }
  }
  await Promise.all(Array.from({ length: FETCHED_AT_ONCE }, healNext))
  return healed
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
