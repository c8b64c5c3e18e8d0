import { mkdirSync } from 'node:fs'
import { DatabaseSync } from 'node:sqlite'
import { CodedError } from '../snapshotter/errors.ts'

/** SQLITE_BUSY of sqlite3.h, https://sqlite.org/rescode.html#busy */
const SQLITE_BUSY = 5

/**
 * Keeps other agents off `root` until it is disposed of or this process ends, however it ends. Throws CodedError UNAVAILABLE if
 * another agent has it, which would find its mounts taken away.
 */
export function lockRoot(root: string): Disposable {
  mkdirSync(root, { recursive: true, mode: 0o700 })
  // Node has no flock(2); an exclusive transaction that never ends holds a lock of the kernel's on the file.
  const lock = new DatabaseSync(`${root}/lock.db`)
  try {
    lock.exec('BEGIN EXCLUSIVE')
  } catch (error) {
    lock.close()
    if (!(error instanceof Error && 'errcode' in error && error.errcode === SQLITE_BUSY))
      throw error
    throw new CodedError(
      'UNAVAILABLE',
      `${root} is in use by another agent: stop that one first, or give this one a 'root' and 'runDir' of its own`,
      { root },
    )
  }
  return { [Symbol.dispose]: () => lock.close() }
}
