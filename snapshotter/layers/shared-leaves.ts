import { rmSync } from 'node:fs'
import { DatabaseSync, type StatementSync } from 'node:sqlite'
import type { CID } from 'multiformats/cid'
import type { BlobStore } from '../blobs/blob-store.ts'
import type { LayerFile } from '../blobs/layer-file.ts'
import type { UnitCoding } from '../blobs/layer-map.ts'
import type { UnitSource } from '../blobs/layer-source.ts'
import { unitCount, unitRange } from '../blobs/shared-units.ts'
import type { Log } from '../log.ts'
import { fuseInode } from './layer-places.ts'
import type { LeafSource } from './leaf-source.ts'

/** Rows written in one transaction, without a turn of the event loop. 2,000: some 5 ms, less than a miss takes over a network. */
const ROWS_AT_ONCE = 2_000

/** Other layers that are looked at for one unit. 8: a leaf of zeros may stand in a layer a million times. */
const CANDIDATES_MAX = 8

const codings: Readonly<Record<UnitCoding, number>> = { plain: 1, zstd: 2 }

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS leaves (
    cid BLOB NOT NULL,
    coding INTEGER NOT NULL,
    layer INTEGER NOT NULL,
    unit INTEGER NOT NULL,
    PRIMARY KEY (cid, coding, layer, unit)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX IF NOT EXISTS leaves_by_layer ON leaves (layer);
`

/** Where a layer's units come from, and what they are made of. */
export type LeafUnits = UnitSource & Pick<LeafSource, 'map' | 'leafOf'>

/**
 * Which units of this node's layers are made of which leaf. `ipdr push` makes the same files the same leaves, whatever layer or
 * image they are in, so a unit that one layer has on disk is copied to another instead of being fetched. Kept in a
 * database beside the layers, whose rows are hints: it can be lost at any time, and then only costs fetches.
 */
export class SharedLeaves implements Disposable {
  readonly #store: BlobStore
  readonly #log: Log
  readonly #onReuse: (bytes: number) => void
  readonly #layers = new Map<number, LeafUnits>()
  readonly #db: DatabaseSync
  readonly #find: StatementSync
  readonly #isKnown: StatementSync
  readonly #insert: StatementSync
  readonly #forget: StatementSync

  /** Opens or makes the database at `path`; one that cannot be read is made anew. Throws what the disk says. */
  constructor(
    path: string,
    { store, log, onReuse }: { store: BlobStore; log: Log; onReuse: (bytes: number) => void },
  ) {
    this.#store = store
    this.#log = log
    this.#onReuse = onReuse
    this.#db = openOrReplace(path, log)
    this.#find = this.#db.prepare(
      `SELECT layer, unit FROM leaves WHERE cid = ? AND coding = ? LIMIT ${CANDIDATES_MAX}`,
    )
    this.#isKnown = this.#db.prepare('SELECT 1 FROM leaves WHERE layer = ? LIMIT 1')
    this.#insert = this.#db.prepare('INSERT OR IGNORE INTO leaves VALUES (?, ?, ?, ?)')
    this.#forget = this.#db.prepare('DELETE FROM leaves WHERE layer = ?')
  }

  /**
   * The units of `layer`, from any layer of this node that has them, else from `units`. What the layer has to give to
   * others is learnt meanwhile; a failure of that is logged, since nothing but sharing is lost.
   */
  share(layer: number, units: LeafUnits): UnitSource {
    const { coding, starts } = units.map
    if (coding === undefined) return units
    this.#layers.set(layer, units)
    void this.#learn(layer, units, codings[coding]).catch((error: unknown) => {
      const sentence = `other layers cannot use the bytes of layer ${layer}: ${String(error)}`
      this.#log.warn({ layer, reason: String(error) }, sentence)
    })
    return {
      fetchUnit: async (unit, request, into) => {
        const { start, end } = unitRange({ starts }, unit)
        const cid = await units.leafOf(unit)
        const here = cid && (await this.#bytesOf({ cid, coding, bytes: end - start }, into))
        return here ?? units.fetchUnit(unit, request, into)
      },
      origin: units,
    }
  }

  /** Whether a layer that is held has this leaf's bytes on disk, as far as is known. */
  isHere(leaf: CID): boolean {
    if (!this.#db.isOpen) return false
    return Object.values(codings).some((coding) =>
      this.#find
        .all(leaf.bytes, coding)
        .some(({ layer, unit }) => this.#fileWith(Number(layer), Number(unit)) !== undefined),
    )
  }

  /** Forgets a layer that is no longer held. */
  forget(layer: number): void {
    if (this.#layers.delete(layer)) this.#forget.run(layer)
  }

  [Symbol.dispose](): void {
    this.#layers.clear()
    this.#db.close()
  }

  async #bytesOf(
    wanted: SharedUnit,
    into: Uint8Array | undefined,
  ): Promise<Uint8Array | undefined> {
    if (!this.#db.isOpen) return undefined
    const rows = this.#find.all(wanted.cid.bytes, codings[wanted.coding])
    for (const { layer, unit } of rows) {
      try {
        const copy = await this.#copy(Number(layer), Number(unit), wanted, into)
        if (copy === undefined) continue
        this.#onReuse(copy.length)
        return copy
      } catch (error) {
        const sentence = `unit ${Number(unit)} of layer ${Number(layer)} cannot be shared: ${String(error)}`
        this.#log.warn({ layer: Number(layer), reason: String(error) }, sentence)
      }
    }
    return undefined
  }

  async #copy(
    layer: number,
    unit: number,
    wanted: SharedUnit,
    into: Uint8Array | undefined,
  ): Promise<Uint8Array | undefined> {
    const units = this.#layers.get(layer)
    const file = this.#fileWith(layer, unit)
    if (units === undefined || file === undefined) return undefined
    const range = unitRange(units.map, unit)
    // The row may speak of a map that this layer had before it was lost and made again.
    const isSame = units.map.coding === wanted.coding && range.end - range.start === wanted.bytes
    if (!isSame || (await units.leafOf(unit))?.equals(wanted.cid) !== true) return undefined
    // What the disk has damaged here would be damaged there, and its checksum would be right.
    if ((await file.check(unit)) !== 'sound') return undefined
    const copy = into ?? Buffer.allocUnsafeSlow(wanted.bytes)
    return (await file.readPresent(range, copy)) ? copy : undefined
  }

  /** The file of a layer that is held, if it has this unit. */
  #fileWith(layer: number, unit: number): LayerFile | undefined {
    const file = this.#store.get(fuseInode(layer))?.file
    if (file === undefined || unit >= unitCount(file.units.starts)) return undefined
    return file.has(unit) ? file : undefined
  }

  async #learn(layer: number, units: LeafUnits, coding: number): Promise<void> {
    if (this.#isKnown.get(layer) !== undefined) return
    const count = unitCount(units.map.starts)
    for (let first = 0; first < count; first += ROWS_AT_ONCE) {
      const end = Math.min(first + ROWS_AT_ONCE, count)
      const leaves: (CID | undefined)[] = []
      for (let unit = first; unit < end; unit++) leaves.push(await units.leafOf(unit))
      // It may have been removed, or all of this closed, meanwhile.
      if (this.#layers.get(layer) !== units) return
      this.#db.exec('BEGIN')
      for (const [index, leaf] of leaves.entries()) {
        if (leaf !== undefined) this.#insert.run(leaf.bytes, coding, layer, first + index)
      }
      this.#db.exec('COMMIT')
    }
  }
}

/** A unit, by what it is made of. `bytes` is its length in the layer file. */
type SharedUnit = { readonly cid: CID; readonly coding: UnitCoding; readonly bytes: number }

function openOrReplace(path: string, log: Log): DatabaseSync {
  try {
    return openDatabase(path)
  } catch (error) {
    log.warn(
      { path, reason: String(error) },
      `${path}, which says what layers share, is made anew: ${String(error)}`,
    )
    rmSync(path, { force: true })
    return openDatabase(path)
  }
}

function openDatabase(path: string): DatabaseSync {
  const db = new DatabaseSync(path)
  try {
    // Nothing in it is needed after a crash. Its cache is small: it is asked once for each miss.
    db.exec('PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA cache_size = -512')
    db.exec(SCHEMA)
    return db
  } catch (error) {
    db.close()
    throw error
  }
}
