import {
  DatabaseSync,
  type SQLInputValue,
  type SQLOutputValue,
  type StatementSync,
} from 'node:sqlite'
import { checkLabels, type Labels, updatedLabels } from '../containerd/labels.ts'
import { SnapshotError } from '../errors.ts'
import { preparedOnce } from '../prepared-once.ts'
import { type SyncFile, WriteAheadLog } from '../write-ahead-log.ts'
import type { Clock } from './clock.ts'
import { DiskReserve } from './disk-reserve.ts'

/** A view is mounted read-only, an active one is written to, a committed one is a parent of others. */
export type Kind = 'view' | 'active' | 'committed'

/** What containerd may know of a snapshot. Times are nanoseconds since the epoch. */
export type SnapshotInfo = {
  /** The key of an active snapshot or view, the name of a committed one: one name space. */
  readonly name: string
  readonly kind: Kind
  /** The name of the parent. */
  readonly parent: string | undefined
  readonly createdNs: bigint
  readonly updatedNs: bigint
  readonly labels: Labels
}

/** Bytes on disk and inodes of one snapshot, without its parents. */
export type Usage = { readonly size: bigint; readonly inodes: bigint }

/** A snapshot as it is kept. */
export type SnapshotRecord = SnapshotInfo & {
  /** Names its directory; never given twice. */
  readonly id: number
  readonly parentId: number | undefined
  /** Only of committed snapshots. */
  readonly usage: Usage | undefined
  /** The lazy layer behind a committed snapshot that was claimed instead of unpacked. */
  readonly layer: number | undefined
}

/** One snapshot of a chain: its directory's name, or its lazy layer. */
export type ChainLink = { readonly id: number; readonly layer: number | undefined }

/** The label that asks Prepare for a layer by its chain ID, and by which containerd finds the committed one. */
export const SNAPSHOT_REF_LABEL = 'containerd.io/snapshot.ref'

/** Length of a key or name, in bytes of UTF-8. 32 KiB: what containerd's own store takes. */
const NAME_BYTES_MAX = 32_768

/** Each brings the schema one version up; `PRAGMA user_version` counts those done. */
const MIGRATIONS: readonly string[] = [
  `CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- the directory's name: never used again
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
    parent_id INTEGER REFERENCES snapshots (id) ON DELETE RESTRICT,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    labels TEXT NOT NULL,
    size INTEGER,
    inodes INTEGER,
    layer INTEGER,
    CHECK ((kind = 'committed') = (size IS NOT NULL) AND (size IS NULL) = (inodes IS NULL)),
    CHECK (layer IS NULL OR kind = 'committed')
  ) STRICT;
  CREATE INDEX snapshots_by_parent ON snapshots (parent_id);
  CREATE INDEX snapshots_by_layer ON snapshots (layer) WHERE layer IS NOT NULL;`,
]

const SELECT = `SELECT snapshots.*, parents.name AS parent
  FROM snapshots LEFT JOIN snapshots AS parents ON parents.id = snapshots.parent_id`

/** Of sqlite3.h. */
const SQLITE_BUSY = 5
const SQLITE_FULL = 13
const SQLITE_CONSTRAINT_UNIQUE = 2067

/**
 * Which snapshots there are, in an embedded database that this process alone may open. Every call is one transaction,
 * on disk once `wal.flushed` resolves. Knows containerd's rules for names, kinds, parents and labels, and no directory.
 * Throws SnapshotError with the codes that containerd expects.
 */
export class Metastore implements AsyncDisposable {
  readonly #db: DatabaseSync
  /** Where its changes are until they are on disk. */
  readonly wal: WriteAheadLog
  readonly #clock: Clock
  readonly #reserve: DiskReserve
  readonly #sql: (text: string) => StatementSync
  #lastId: number

  /** Opens or makes the database at `path`. Throws UNAVAILABLE if another process has it, FAILED_PRECONDITION if it is newer. */
  constructor(path: string, { clock, sync }: { clock: Clock; sync?: SyncFile | undefined }) {
    this.#clock = clock
    this.#reserve = new DiskReserve(`${path}-reserve`)
    this.#db = new DatabaseSync(path, { readBigInts: true, enableForeignKeyConstraints: true })
    this.#sql = preparedOnce(this.#db)
    try {
      // The exclusive lock keeps a second agent from taking this one's directories for orphans.
      this.#db.exec('PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL')
      this.#db.exec('PRAGMA synchronous = FULL; BEGIN IMMEDIATE; COMMIT')
      this.#migrate(path)
      this.wal = new WriteAheadLog(this.#db, path, sync)
    } catch (error) {
      this.#db.close()
      if (!isSqlite(error, SQLITE_BUSY)) throw error
      throw new SnapshotError('UNAVAILABLE', `${path} is in use by another agent: stop it first`)
    }
    this.#reserve.fill()
    const last = this.#sql('SELECT max(seq) AS seq FROM sqlite_sequence').get()
    this.#lastId = Number(last?.['seq'] ?? 0n)
  }

  #migrate(path: string): void {
    const version = Number(this.#db.prepare('PRAGMA user_version').get()?.['user_version'])
    if (version > MIGRATIONS.length) {
      throw new SnapshotError(
        'FAILED_PRECONDITION',
        `${path} has schema version ${version}, this agent knows ${MIGRATIONS.length}: run the newer agent`,
      )
    }
    for (const [done, migration] of MIGRATIONS.entries()) {
      if (done < version) continue
      this.#inTransaction(() => {
        this.#db.exec(migration)
        this.#db.exec(`PRAGMA user_version = ${done + 1}`)
      })
    }
  }

  /** An ID that no snapshot has or had, and that is given to nobody else while this store is open. */
  reserveId(): number {
    this.#lastId += 1
    return this.#lastId
  }

  /** Keeps `id` and all below it from being reserved. */
  skipIds(id: number): void {
    this.#lastId = Math.max(this.#lastId, id)
  }

  find(name: string): SnapshotRecord | undefined {
    const row = this.#sql(`${SELECT} WHERE snapshots.name = ?`).get(name)
    return row === undefined ? undefined : recordOf(row)
  }

  /** As `find`. Throws NOT_FOUND. */
  get(name: string): SnapshotRecord {
    const record = this.find(name)
    if (record === undefined)
      throw new SnapshotError('NOT_FOUND', `snapshot ${name} does not exist`)
    return record
  }

  /** The snapshot to build on. Throws NOT_FOUND, or INVALID_ARGUMENT if it is not committed. */
  getParent(name: string): SnapshotRecord {
    const parent = this.get(name)
    if (parent.kind !== 'committed') {
      throw new SnapshotError('INVALID_ARGUMENT', `parent ${name} is ${parent.kind}, not committed`)
    }
    return parent
  }

  /** The snapshot `id` and its parents, topmost first. */
  chain(id: number): ChainLink[] {
    const rows = this.#sql(
      `WITH RECURSIVE chain (id, parent_id, layer, depth) AS (
         SELECT id, parent_id, layer, 0 FROM snapshots WHERE id = ?
         UNION ALL
         SELECT snapshots.id, snapshots.parent_id, snapshots.layer, depth + 1
         FROM snapshots JOIN chain ON snapshots.id = chain.parent_id
       ) SELECT id, layer FROM chain ORDER BY depth`,
    ).all(id)
    return rows.map((row) => ({ id: Number(row['id']), layer: optionalNumber(row['layer']) }))
  }

  /** Adds an active snapshot or view with a reserved ID. Throws ALREADY_EXISTS, NOT_FOUND, INVALID_ARGUMENT. */
  create(snapshot: {
    id: number
    kind: 'active' | 'view'
    key: string
    parent: string | undefined
    labels: Labels
  }): SnapshotRecord {
    const labels = checkLabels(snapshot.labels)
    return this.#transaction(() => {
      const parent = snapshot.parent === undefined ? undefined : this.getParent(snapshot.parent)
      return this.#insert({ ...snapshot, name: snapshot.key, parentId: parent?.id, labels })
    })
  }

  /**
   * The committed snapshot of a lazy layer on this parent, found by its label, or added. Two namespaces of
   * containerd that pull one image ask for the same one. `name` is for one that must have it, and is added. Throws NOT_FOUND,
   * INVALID_ARGUMENT and ALREADY_EXISTS.
   */
  commitLayer(snapshot: {
    name?: string
    layerChainId: string
    parent: string | undefined
    labels: Labels
    layer: number
    usage: Usage
  }): SnapshotRecord {
    const { layerChainId, layer, usage } = snapshot
    const labels = checkLabels(snapshot.labels)
    return this.#transaction(() => {
      const parent = snapshot.parent === undefined ? undefined : this.getParent(snapshot.parent)
      const found = this.#sql(
        `${SELECT} WHERE snapshots.parent_id IS ? AND snapshots.kind = 'committed'
           AND snapshots.labels ->> ? = ?`,
      ).get(parent?.id ?? null, `$."${SNAPSHOT_REF_LABEL}"`, layerChainId)
      if (found !== undefined && snapshot.name === undefined) return recordOf(found)
      const id = this.reserveId()
      // The chain ID, for people; the same chain may stand on another parent, of another name.
      const free = this.find(layerChainId) === undefined ? layerChainId : `${layerChainId}@${id}`
      const name = snapshot.name ?? free
      return this.#insert({
        id,
        name,
        kind: 'committed',
        parentId: parent?.id,
        labels,
        layer,
        usage,
      })
    })
  }

  /**
   * Turns the active snapshot `key` into the committed `name`, with these labels and no others. `parent` rebases one
   * that was prepared without. Throws ALREADY_EXISTS, NOT_FOUND, FAILED_PRECONDITION, INVALID_ARGUMENT.
   */
  commit(change: {
    key: string
    name: string
    parent: string | undefined
    labels: Labels
    usage: Usage
  }): SnapshotRecord {
    const { key, name, usage } = change
    const labels = checkLabels(change.labels)
    checkName(name)
    return this.#transaction(() => {
      const active = this.getCommittable(key, name)
      const parentId = this.#parentAtCommit(active, change.parent)
      const now = this.#clock.now()
      this.#sql(
        `UPDATE snapshots SET name = ?, kind = 'committed', parent_id = ?, created_ns = ?, updated_ns = ?,
           labels = ?, size = ?, inodes = ? WHERE id = ?`,
      ).run(name, parentId ?? null, now, now, jsonOf(labels), usage.size, usage.inodes, active.id)
      return this.get(name)
    })
  }

  /** The active snapshot `key`, if it may become `name`. Throws as `commit`. */
  getCommittable(key: string, name: string): SnapshotRecord {
    if (this.find(name) !== undefined) throw alreadyExists(name)
    const active = this.get(key)
    if (active.kind !== 'active') {
      throw new SnapshotError(
        'FAILED_PRECONDITION',
        `snapshot ${key} is ${active.kind}, not active`,
      )
    }
    return active
  }

  #parentAtCommit(active: SnapshotRecord, parent: string | undefined): number | undefined {
    if (parent === undefined || parent === active.parent) return active.parentId
    if (active.parent !== undefined) {
      throw new SnapshotError(
        'INVALID_ARGUMENT',
        `snapshot ${active.name} has parent ${active.parent}: a commit cannot move it to ${parent}`,
      )
    }
    const { id, kind } = this.get(parent)
    if (kind === 'committed') return id
    throw new SnapshotError('FAILED_PRECONDITION', `parent ${parent} is ${kind}, not committed`)
  }

  /**
   * Forgets a snapshot, also on a full disk. `layerReleased`: it was the last with its layer. Throws NOT_FOUND, or
   * FAILED_PRECONDITION if it has children.
   */
  remove(name: string): SnapshotRecord & { readonly layerReleased: boolean } {
    try {
      return this.#remove(name)
    } catch (error) {
      if (!isSqlite(error, SQLITE_FULL) || !this.#reserve.spend()) throw error
      return this.#remove(name)
    }
  }

  #remove(name: string): SnapshotRecord & { readonly layerReleased: boolean } {
    return this.#transaction(() => {
      const record = this.get(name)
      const child = this.#sql('SELECT name FROM snapshots WHERE parent_id = ? LIMIT 1').get(
        record.id,
      )
      if (child !== undefined) {
        throw new SnapshotError(
          'FAILED_PRECONDITION',
          `cannot remove snapshot ${name}: ${String(child['name'])} is built on it`,
        )
      }
      this.#sql('DELETE FROM snapshots WHERE id = ?').run(record.id)
      const layerReleased = record.layer !== undefined && !this.hasLayer(record.layer)
      return { ...record, layerReleased }
    })
  }

  /** Makes sure, where the disk has room again, that `remove` works when it is full the next time. */
  refillReserve(): void {
    this.#reserve.fill()
  }

  /**
   * Replaces labels: all of them, or those that `paths` name, `labels` or `labels.<key>`; one without a value is deleted.
   * Throws NOT_FOUND, or INVALID_ARGUMENT if a path names anything else.
   */
  update(change: { name: string; labels: Labels; paths: readonly string[] }): SnapshotRecord {
    return this.#transaction(() => {
      const record = this.get(change.name)
      const labels = updatedLabels(record.labels, {
        given: change.labels,
        paths: change.paths,
        what: `snapshot ${record.name}`,
      })
      this.#sql('UPDATE snapshots SET labels = ?, updated_ns = ? WHERE id = ?').run(
        jsonOf(labels),
        this.#clock.now(),
        record.id,
      )
      return this.get(change.name)
    })
  }

  /** Up to `limit` snapshots with IDs above `afterId`, ascending. */
  page(afterId: number, limit: number): SnapshotRecord[] {
    const rows = this.#sql(`${SELECT} WHERE snapshots.id > ? ORDER BY snapshots.id LIMIT ?`)
    return rows.all(afterId, limit).map(recordOf)
  }

  hasId(id: number): boolean {
    return this.#sql('SELECT 1 FROM snapshots WHERE id = ?').get(id) !== undefined
  }

  hasLayer(layer: number): boolean {
    return this.#sql('SELECT 1 FROM snapshots WHERE layer = ?').get(layer) !== undefined
  }

  /** The lazy layers that snapshots have. */
  layers(): Set<number> {
    const rows = this.#sql('SELECT DISTINCT layer FROM snapshots WHERE layer IS NOT NULL').all()
    return new Set(rows.map((row) => Number(row['layer'])))
  }

  /** Twice is harmless. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#db.isOpen) return
    await this.wal[Symbol.asyncDispose]()
    this.#db.close()
  }

  #insert(snapshot: {
    id: number
    name: string
    kind: Kind
    parentId: number | undefined
    labels: Labels
    layer?: number
    usage?: Usage
  }): SnapshotRecord {
    const { id, name, kind, parentId, labels, layer, usage } = snapshot
    checkName(name)
    const now = this.#clock.now()
    const row: Record<string, SQLInputValue> = {
      id,
      name,
      kind,
      parent_id: parentId ?? null,
      now,
      labels: jsonOf(labels),
      size: usage?.size ?? null,
      inodes: usage?.inodes ?? null,
      layer: layer ?? null,
    }
    try {
      this.#sql(
        `INSERT INTO snapshots (id, name, kind, parent_id, created_ns, updated_ns, labels, size, inodes, layer)
         VALUES (:id, :name, :kind, :parent_id, :now, :now, :labels, :size, :inodes, :layer)`,
      ).run(row)
    } catch (error) {
      throw isSqlite(error, SQLITE_CONSTRAINT_UNIQUE) ? alreadyExists(name) : error
    }
    return this.get(name)
  }

  /** A change. */
  #transaction<Result>(work: () => Result): Result {
    const result = this.#inTransaction(work)
    this.wal.committed()
    return result
  }

  #inTransaction<Result>(work: () => Result): Result {
    this.#db.exec('BEGIN IMMEDIATE')
    try {
      const result = work()
      this.#db.exec('COMMIT')
      return result
    } catch (error) {
      // A full disk has SQLite roll back by itself.
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK')
      throw error
    }
  }
}

function checkName(name: string): void {
  const length = Buffer.byteLength(name)
  if (length > 0 && length <= NAME_BYTES_MAX) return
  throw new SnapshotError(
    'INVALID_ARGUMENT',
    `a snapshot's key or name has 1 to ${NAME_BYTES_MAX} bytes, not ${length}`,
  )
}

function alreadyExists(name: string): SnapshotError {
  return new SnapshotError('ALREADY_EXISTS', `snapshot ${name} already exists`)
}

function jsonOf(labels: Labels): string {
  return JSON.stringify(Object.fromEntries(labels))
}

function recordOf(row: Record<string, SQLOutputValue>): SnapshotRecord {
  const [size, inodes] = [row['size'], row['inodes']]
  return {
    id: Number(row['id']),
    name: String(row['name']),
    kind: row['kind'] as Kind,
    parentId: optionalNumber(row['parent_id']),
    parent: typeof row['parent'] === 'string' ? row['parent'] : undefined,
    createdNs: row['created_ns'] as bigint,
    updatedNs: row['updated_ns'] as bigint,
    labels: new Map(Object.entries(JSON.parse(String(row['labels'])) as Record<string, string>)),
    usage: typeof size === 'bigint' && typeof inodes === 'bigint' ? { size, inodes } : undefined,
    layer: optionalNumber(row['layer']),
  }
}

function optionalNumber(value: SQLOutputValue | undefined): number | undefined {
  return typeof value === 'bigint' ? Number(value) : undefined
}

/** node:sqlite's errors have SQLite's extended result code in `errcode`. */
function isSqlite(error: unknown, errcode: number): boolean {
  return error instanceof Error && 'errcode' in error && error.errcode === errcode
}
