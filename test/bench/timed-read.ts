import { inOwnProcess } from './in-own-process.ts'

export type ReadTask = {
  /** `walk`: look at every entry. `files`: read every file too. `random`: read single pages of one file. */
  readonly kind: 'walk' | 'files' | 'random'
  /** Directories, or for `random` one file. */
  readonly paths: readonly string[]
  /** `cold`: caches are dropped before. `warm`: all is read once before, then several times. */
  readonly cache: 'cold' | 'warm'
  /** Memory to touch before, in bytes: about what the page cache will take. */
  readonly memoryBytes: number
  /** Of `random`: how many pages. */
  readonly reads?: number
  /** Of `random`: which pages. 1 unless given. */
  readonly seed?: number
}

export type ReadResult = {
  readonly ms: number
  /** Entries of a walk, bytes of files, the median of random reads in microseconds. */
  readonly amount: number
  /** Of `random`, in microseconds. */
  readonly p99?: number
}

/** Five minutes: 1 GB at 10 MB/s, on a disk that others use too. */
const DEADLINE_MS = 300_000

/**
 * Reads in a process of its own: one that reads from a FUSE server may be stuck in the kernel for as long as that server
 * takes, and nothing else of ours should be. Rejects after five minutes.
 */
export function timedRead(task: ReadTask): Promise<ReadResult> {
  return inOwnProcess('reader.ts', task, { flags: ['--expose-gc'], deadlineMs: DEADLINE_MS })
}
