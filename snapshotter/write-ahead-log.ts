import { closeSync, fdatasync, fsyncSync, openSync } from 'node:fs'
import { dirname } from 'node:path'
import type { DatabaseSync } from 'node:sqlite'
import { promisify } from 'node:util'
import { KernelError } from './errors.ts'

/**
 * Pages of the log from which on a commit copies it into the database by itself, waiting for the disk. 4,000 of 4 KiB: 500 starts of
 * containers; whoever is at rest does it before, by `checkpoint`.
 */
const CHECKPOINT_PAGES = 4_000

/** Waits until all that was written to a file is on disk. */
export type SyncFile = (fd: number) => Promise<void>

/**
 * What a database in WAL mode has committed, on its way to the disk. SQLite waits for the disk in the thread that commits, 30 ms where others
 * write much; here libuv's threads do, so that the main thread goes on, and commits of the same time share one wait. With
 * `synchronous = NORMAL` SQLite writes each commit to the log before it returns, and loses none to kill(2); what a power cut takes
 * is whole commits from the last one back (https://sqlite.org/pragma.html#pragma_synchronous). So nobody may be told of one, and
 * nothing that it speaks of may be deleted, before `flushed`.
 */
export class WriteAheadLog implements AsyncDisposable {
  readonly #db: DatabaseSync
  readonly #path: string
  readonly #sync: SyncFile
  readonly #fd: number
  #commits = 0
  #onDisk = 0
  /** There whenever something is not on disk, unless that has failed. */
  #flushing: Promise<void> | undefined
  #failure: KernelError | undefined
  readonly #failed = Promise.withResolvers<never>()

  /** Of the database at `path`, which is in WAL mode and has been written to. */
  constructor(db: DatabaseSync, path: string, sync: SyncFile = promisify(fdatasync)) {
    this.#db = db
    this.#path = path
    this.#sync = sync
    db.exec(`PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = ${CHECKPOINT_PAGES}`)
    // As long as the database is open, the log is this file: it is begun anew, never made anew.
    this.#fd = openSync(`${path}-wal`, 'r')
    syncDirectoryNow(dirname(path))
    // Who does not look at it learns by `flushed`.
    this.#failed.promise.catch(() => undefined)
  }

  /** Rejects with KernelError when the disk has not taken what was committed: only what it has after a restart is known then. */
  get failed(): Promise<never> {
    return this.#failed.promise
  }

  /** To be told of each commit that anybody may rely on. Begins to bring it to disk. */
  committed(): void {
    this.#commits += 1
    this.#flushing ??= this.#flush()
  }

  /** Resolves when all that was committed before this call is on disk. Rejects as `failed`, from then on each time. */
  async flushed(): Promise<void> {
    const wanted = this.#commits
    while (this.#onDisk < wanted && this.#failure === undefined) await this.#flushing
    if (this.#failure !== undefined) throw this.#failure
  }

  /** Copies the log into the database, so that commits need not. Waits for the disk: for times of rest. */
  checkpoint(): void {
    this.#db.exec('PRAGMA wal_checkpoint(PASSIVE)')
  }

  /** Resolves when nothing is on its way to the disk any more. The database is closed before or after. */
  async [Symbol.asyncDispose](): Promise<void> {
    while (this.#flushing !== undefined) await this.#flushing
    closeSync(this.#fd)
  }

  /** Never rejects. */
  async #flush(): Promise<void> {
    const commits = this.#commits
    try {
      await this.#sync(this.#fd)
      this.#onDisk = commits
    } catch (error) {
      // Whether a later one succeeds says nothing of these pages: fsync(2) tells of an error once.
      this.#failure ??= new KernelError(
        'INTERNAL',
        `the disk did not take what was written to ${this.#path} (${String(error)}): look at the disk's health; the agent starts again with what is there`,
        { path: this.#path },
        error,
      )
      this.#failed.reject(this.#failure)
    } finally {
      this.#flushing = undefined
    }
    if (this.#onDisk < this.#commits && this.#failure === undefined) this.#flushing = this.#flush()
  }
}

function syncDirectoryNow(path: string): void {
  const fd = openSync(path, 'r')
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}
