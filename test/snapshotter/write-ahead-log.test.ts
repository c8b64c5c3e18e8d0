import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { expect, onTestFinished, test } from 'vitest'
import { WriteAheadLog } from '../../snapshotter/write-ahead-log.ts'
import { Scratch } from '../support/scratch.ts'

/** A disk that is done when it is told to. */
class GatedDisk {
  readonly #waiting: { readonly resolve: () => void; readonly reject: (error: Error) => void }[] =
    []
  asked = 0

  readonly sync = (): Promise<void> => {
    this.asked += 1
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#waiting.push({ resolve, reject })
    return promise
  }

  done(): void {
    this.#waiting.shift()?.resolve()
  }

  fails(error: Error): void {
    this.#waiting.shift()?.reject(error)
  }
}

function logOn(disk: GatedDisk): WriteAheadLog {
  const scratch = Scratch.open('write-ahead-log')
  const path = join(scratch.dir, 'db')
  const db = new DatabaseSync(path)
  db.exec('PRAGMA journal_mode = WAL; CREATE TABLE t (a)')
  const log = new WriteAheadLog(db, path, disk.sync)
  onTestFinished(async () => {
    db.close()
    await scratch[Symbol.asyncDispose]()
  })
  return log
}

/** Whether a promise has settled, once all that could be done without the disk has been done. */
async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false
  const settle = (): void => {
    settled = true
  }
  promise.then(settle, settle)
  for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate)
  return settled
}

test('nothing is waited for where nothing was committed', async () => {
  const disk = new GatedDisk()
  await logOn(disk).flushed()
  expect(disk.asked).toBe(0)
})

test('a commit is on its way to the disk at once, and flushed when it is there', async () => {
  const disk = new GatedDisk()
  const log = logOn(disk)
  log.committed()
  expect(disk.asked).toBe(1)
  const flushed = log.flushed()
  expect(await isSettled(flushed)).toBe(false)
  disk.done()
  await flushed
})

test('commits made while the disk is at work share the next wait, and none is flushed by one that began before it', async () => {
  const disk = new GatedDisk()
  const log = logOn(disk)
  log.committed()
  const first = log.flushed()
  for (let commit = 0; commit < 5; commit++) log.committed()
  const later = log.flushed()
  expect(disk.asked).toBe(1)
  disk.done()
  await first
  expect(await isSettled(later)).toBe(false)
  expect(disk.asked).toBe(2)
  disk.done()
  await later
  expect(await isSettled(log.flushed())).toBe(true)
  expect(disk.asked).toBe(2)
})

test('it ends when the last commit is on disk, also one that came while the disk was at work', async () => {
  const disk = new GatedDisk()
  const log = logOn(disk)
  log.committed()
  log.committed()
  const ended = log[Symbol.asyncDispose]()
  disk.done()
  expect(await isSettled(ended)).toBe(false)
  expect(disk.asked).toBe(2)
  disk.done()
  await ended
})

test('what the disk did not take is told to everybody from then on, whatever it takes later', async () => {
  const disk = new GatedDisk()
  const log = logOn(disk)
  log.committed()
  const flushed = log.flushed()
  disk.fails(new Error('EIO: i/o error, fdatasync'))
  const failure = /the disk did not take what was written to .*db \(.*EIO.*health/
  await expect(flushed).rejects.toThrow(failure)
  await expect(log.failed).rejects.toThrow(failure)
  log.committed()
  disk.done()
  await expect(log.flushed()).rejects.toThrow(failure)
})
