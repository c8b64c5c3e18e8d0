import type { SharedUnits } from '../blobs/shared-units.ts'
import type { FlatEntry } from './messages.ts'
import type { SharedTrace } from './read-trace.ts'

/** A file of the flat file system: a layer, the bytes of which are on disk in part. */
export type FlatFile = FlatEntry & {
  /** What is on disk, so that reads of it need not ask the main thread. */
  readonly units: SharedUnits
}

/** What the main thread tells a serving thread, by message; `version` in `ThreadStart` says that there is one. */
export type TableChange =
  | { readonly kind: 'add'; readonly file: FlatFile }
  | { readonly kind: 'remove'; readonly inode: number }

/** What a serving thread tells the main thread. */
export type ThreadReport =
  | { readonly kind: 'miss'; readonly miss: Miss }
  | { readonly kind: 'trouble'; readonly sentence: string }

/** A READ that a thread cannot answer from disk. The main thread owes the kernel the reply. */
export type Miss = {
  readonly unique: bigint
  readonly inode: number
  /** Bytes of the file, ending at its end at the latest, never empty. */
  readonly offset: number
  readonly size: number
  /** The thread that reads, as the kernel names it. */
  readonly pid: number
}

/** What a serving thread is started with. */
export type ThreadStart = {
  /** The open /dev/fuse. */
  readonly deviceFd: number
  /** Flags of every OPEN reply. */
  readonly openFlags: number
  /** A LOOKUP of a name that starts so ends the thread that gets it. */
  readonly stopPrefix: string
  /** [0] rises after each `TableChange` is posted: a thread in a blocking read hears no events. */
  readonly version: Int32Array
  /** The thread's own counters, which it alone writes: see `ThreadCounters`. */
  readonly counters: Float64Array
  /** Where the thread notes reads while somebody wants to know them. */
  readonly trace: SharedTrace
}
