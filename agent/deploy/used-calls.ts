import { mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { DatabaseSync, type StatementSync } from 'node:sqlite'
import { CallError } from './call-error.ts'

/** Calls that are remembered until they expire. 100,000 of ten minutes are 160 a second, more than a cluster's API takes. */
const CALLS_MAX = 100_000

export type UsedCall = {
  /** Of this call alone. */
  readonly id: Uint8Array
  /** The namespace of the pod that it changes. */
  readonly pod: string
  /** Seconds since 1970. */
  readonly expiresAt: number
  /** What it asks for, if it may be asked for again: by clients that try again with the same token. */
  readonly request?: Uint8Array | undefined
}

/** Which signed calls were carried out, so that none is twice. On disk: a restart forgets nothing. */
export class UsedCalls implements Disposable {
  readonly #database: DatabaseSync
  readonly #insert: StatementSync
  readonly #find: StatementSync
  readonly #expire: StatementSync
  readonly #count: StatementSync

  private constructor(database: DatabaseSync) {
    this.#database = database
    this.#insert = database.prepare(
      'INSERT OR IGNORE INTO used (id, pod, request, expires_at) VALUES (?, ?, ?, ?)',
    )
    this.#find = database.prepare(
      'SELECT request, seq = (SELECT max(seq) FROM used AS one WHERE one.pod = used.pod) AS is_last FROM used WHERE id = ?',
    )
    this.#expire = database.prepare('DELETE FROM used WHERE expires_at < ?')
    this.#count = database.prepare('SELECT count(*) AS calls FROM used')
  }

  static open(path: string): UsedCalls {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
    const database = new DatabaseSync(path)
    // FULL: a call that was carried out before the power went is not carried out again after it.
    database.exec(`
      PRAGMA journal_mode = WAL;
      PRAGMA synchronous = FULL;
      CREATE TABLE IF NOT EXISTS used (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id BLOB NOT NULL UNIQUE,
        pod TEXT NOT NULL,
        request BLOB,
        expires_at INTEGER NOT NULL
      ) STRICT;
      CREATE INDEX IF NOT EXISTS used_by_pod ON used (pod, seq);
    `)
    return new UsedCalls(database)
  }

  /**
   * Marks a call as carried out. `now` is in seconds since 1970. Throws CallError UNAUTHENTICATED if it was before, but for the same request
   * once more while nothing else has changed the pod; RESOURCE_EXHAUSTED if too many are remembered.
   */
  use({ id, pod, expiresAt, request }: UsedCall, now: number): void {
    if (this.#insert.run(id, pod, request ?? null, Math.ceil(expiresAt)).changes === 1) {
      this.#keepFew(id, now)
      return
    }
    const found = this.#find.get(id)
    const before = found?.['request']
    const isSame =
      request !== undefined && before instanceof Uint8Array && Buffer.compare(before, request) === 0
    if (isSame && found?.['is_last'] === 1) return
    throw new CallError(
      'UNAUTHENTICATED',
      'this signature has been used already; sign the call anew',
    )
  }

  [Symbol.dispose](): void {
    this.#database.close()
  }

  #keepFew(id: Uint8Array, now: number): void {
    if (this.#calls() <= CALLS_MAX) return
    this.#expire.run(now)
    if (this.#calls() <= CALLS_MAX) return
    this.#database.prepare('DELETE FROM used WHERE id = ?').run(id)
    throw new CallError(
      'RESOURCE_EXHAUSTED',
      `${CALLS_MAX} calls were signed for the next minutes; try again when they have expired`,
    )
  }

  #calls(): number {
    return Number(this.#count.get()?.['calls'] ?? 0)
  }
}
