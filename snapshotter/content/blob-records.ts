import { DatabaseSync, type SQLOutputValue, type StatementSync } from 'node:sqlite'
import type { Labels } from '../containerd/labels.ts'
import { ContentError } from '../errors.ts'
import type { Digest } from '../oci/digest.ts'
import { preparedOnce } from '../prepared-once.ts'
import { WriteAheadLog } from '../write-ahead-log.ts'

/** What is known of a blob beside its bytes. Times are nanoseconds since the epoch. */
export type BlobRecord = {
  readonly digest: Digest
  readonly size: number
  readonly createdNs: bigint
  readonly updatedNs: bigint
  readonly labels: Labels
  /** What finds it where it is published; undefined if its bytes are here. */
  readonly published: Uint8Array | undefined
}

const SCHEMA_VERSION = 1

/** Records that are read at once. 100: some may be a list of a thousand leaves, 50 KB. */
const PAGE_RECORDS = 100

/** Of sqlite3.h. */
const SQLITE_BUSY = 5

/**
 * Times and labels of blobs, and which of them are not kept here, in an embedded database; every call is one transaction, on disk once
 * `wal.flushed` resolves.
 */
export class BlobRecords implements AsyncDisposable {
  readonly #db: DatabaseSync
  /** Where its changes are until they are on disk. */
  readonly wal: WriteAheadLog
  readonly #sql: (text: string) => StatementSync

  /** Throws ContentError UNAVAILABLE if another process has the database at `path` open, FAILED_PRECONDITION if a newer agent wrote it. */
  constructor(path: string) {
    this.#db = new DatabaseSync(path, { readBigInts: true })
    this.#sql = preparedOnce(this.#db)
    try {
      this.#db.exec('PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL')
      this.#db.exec('PRAGMA synchronous = FULL; BEGIN IMMEDIATE; COMMIT')
      const version = Number(this.#db.prepare('PRAGMA user_version').get()?.['user_version'])
      if (version > SCHEMA_VERSION) {
        throw new ContentError(
          'FAILED_PRECONDITION',
          `${path} has schema version ${version}, this agent knows ${SCHEMA_VERSION}: run the newer agent`,
        )
      }
      this.#db.exec(`
        BEGIN IMMEDIATE;
        CREATE TABLE IF NOT EXISTS blobs (
          digest TEXT PRIMARY KEY,
          size INTEGER NOT NULL,
          created_ns INTEGER NOT NULL,
          updated_ns INTEGER NOT NULL,
          labels TEXT NOT NULL,
          published BLOB
        ) STRICT;
        PRAGMA user_version = ${SCHEMA_VERSION};
        COMMIT`)
      this.wal = new WriteAheadLog(this.#db, path)
    } catch (error) {
      this.#db.close()
      const isBusy = error instanceof Error && 'errcode' in error && error.errcode === SQLITE_BUSY
      if (!isBusy) throw error
      throw new ContentError('UNAVAILABLE', `${path} is in use by another agent: stop it first`)
    }
  }

  get(digest: Digest): BlobRecord | undefined {
    const row = this.#sql('SELECT * FROM blobs WHERE digest = ?').get(digest)
    return row === undefined ? undefined : recordOf(row)
  }

  put(record: BlobRecord): void {
    this.#sql('INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?, ?)').run(
      record.digest,
      record.size,
      record.createdNs,
      record.updatedNs,
      JSON.stringify(Object.fromEntries(record.labels)),
      record.published ?? null,
    )
    this.wal.committed()
  }

  /** Whether there was one. */
  delete(digest: Digest): boolean {
    const { changes } = this.#sql('DELETE FROM blobs WHERE digest = ?').run(digest)
    this.wal.committed()
    return changes > 0
  }

  /** Every record, by digest; others may be made and deleted meanwhile. */
  *all(): Generator<BlobRecord, void> {
    const page = this.#sql('SELECT * FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?')
    for (let after = ''; ; ) {
      const records = page.all(after, PAGE_RECORDS).map(recordOf)
      yield* records
      const last = records.at(-1)
      if (last === undefined) return
      after = last.digest
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.wal[Symbol.asyncDispose]()
    this.#db.close()
  }
}

function recordOf(row: Record<string, SQLOutputValue>): BlobRecord {
  const published = row['published']
  return {
    digest: String(row['digest']) as Digest,
    size: Number(row['size']),
    createdNs: row['created_ns'] as bigint,
    updatedNs: row['updated_ns'] as bigint,
    labels: new Map(Object.entries(JSON.parse(String(row['labels'])) as Record<string, string>)),
    published: published instanceof Uint8Array ? published : undefined,
  }
}
