import type { WaitedRead__Output } from '../../../proto/types/ipdr/v1/WaitedRead.ts'
import { type Command, defineCommand } from '../command.ts'
import type { Output } from '../output.ts'
import { count, formatBytes, formatMs } from '../quantity.ts'
import { table } from '../table.ts'
import { timestampMs } from '../timestamp.ts'

/** Rows shown unless `--limit` says otherwise: a terminal's height or so. */
const ROWS_SHOWN = 40

/** One read that waited. */
type Read = {
  readonly path: string
  readonly layerDigest: string
  readonly offset: number
  readonly bytes: number
  readonly waitedMs: number
  /** Milliseconds since the epoch. */
  readonly atMs: number
  readonly error: string | null
}

/** All reads of one file. */
type WaitedFile = {
  readonly path: string
  readonly reads: number
  readonly bytes: number
  readonly waitedMs: number
  readonly longestMs: number
  /** Milliseconds since the epoch. */
  readonly firstAtMs: number
  readonly failures: number
}

/** `ipdr waited` */
export const waited: Command = defineCommand({
  name: 'waited',
  usage: '[image]',
  summary: 'Say which files of an image were waited for',
  description: [
    'Lists the files whose bytes were not on this node when a process read them: how long the reads waited, and how many bytes they were. It is where the time of a cold start went. Reads that wait at the same time count once. Without an image, every image counts.',
    'An image is named by its reference, root CID or manifest digest; the ID of a container stands for its image. Files come in the order in which they were first waited for; --sort longest puts the most expensive first. --reads lists every read by itself.',
  ],
  args: {
    image: { type: 'string', describe: 'Reference, CID or digest of an image, or a container ID' },
  },
  options: {
    sort: {
      choices: ['first', 'longest'],
      default: 'first',
      describe: 'By first wait, or by time waited',
      valueName: 'ORDER',
    },
    reads: { type: 'boolean', default: false, describe: 'List single reads, not files' },
    limit: {
      type: 'number',
      default: ROWS_SHOWN,
      requiresArg: true,
      describe: 'Most rows of the text; 0 for all',
      valueName: 'ROWS',
    },
  },
  examples: [
    ['ipdr waited ipdr.internal/<cid> --sort longest', 'what made the start slow'],
    ['ipdr waited --reads --limit 0', 'every read of every image'],
    ["ipdr waited <cid> -o json | jq '.waitedMs'", 'milliseconds waited, all in all'],
  ],
  seeAlso: ['ipdr status', 'ipdr inspect'],
  async run({ image, sort, reads: single, limit }, { output, agentSocket, signal }) {
    const { ask, connectAgent } = await import('../agent-connection.ts')
    using agent = await connectAgent(agentSocket)
    const answer = await ask(
      (call) => agent.calls.WaitedFor({ subject: image ?? '' }, call),
      signal,
    )
    const reads = answer.reads.map(parseRead).toSorted((a, b) => a.atMs - b.atMs)
    const files = filesOf(reads)
    const totals = {
      image: image ?? null,
      files: files.length,
      reads: reads.length,
      bytes: sum(reads.map(({ bytes }) => bytes)),
      waitedMs: timeWaitedMs(reads),
    }
    const everyRead = sort === 'longest' ? longestFirst(reads) : reads
    const everyFile = sort === 'longest' ? longestFirst(files) : files
    const rows = single
      ? { everyRead: everyRead.map(readDocument) }
      : { everyFile: everyFile.map(fileDocument) }
    output.answer({ ...totals, ...rows }, () => {
      if (reads.length === 0) return 'No read had to wait.'
      const all = single ? reads.length : files.length
      const shown = limit > 0 ? limit : all
      const text = single
        ? describeReads(everyRead.slice(0, shown), output)
        : describeFiles(everyFile.slice(0, shown), output)
      const more = all > shown ? `\n… and ${all - shown} more (--limit 0 shows all)` : ''
      return `${text}${more}\n${count(totals.reads, 'read')} of ${count(totals.files, 'file')} waited ${formatMs(totals.waitedMs)} for ${formatBytes(totals.bytes)}`
    })
  },
})

function longestFirst<T extends { readonly waitedMs: number }>(rows: readonly T[]): T[] {
  return rows.toSorted((a, b) => b.waitedMs - a.waitedMs)
}

function readDocument({ atMs, ...read }: Read): object {
  return { ...read, at: new Date(atMs).toISOString() }
}

function fileDocument({ firstAtMs, ...file }: WaitedFile): object {
  return { ...file, firstAt: new Date(firstAtMs).toISOString() }
}

function parseRead(read: WaitedRead__Output): Read {
  return {
    path: read.path,
    layerDigest: read.layerDigest,
    offset: Number(read.offset),
    bytes: Number(read.length),
    waitedMs: read.waitedMs,
    atMs: timestampMs(read.at) ?? 0,
    error: read.error === '' ? null : read.error,
  }
}

/** One entry for each file, in the order of their first reads. */
function filesOf(reads: readonly Read[]): WaitedFile[] {
  return [...Map.groupBy(reads, ({ path }) => path)].map(([path, ofFile]) => ({
    path,
    reads: ofFile.length,
    bytes: sum(ofFile.map(({ bytes }) => bytes)),
    waitedMs: timeWaitedMs(ofFile),
    longestMs: Math.max(...ofFile.map(({ waitedMs }) => waitedMs)),
    firstAtMs: ofFile[0]?.atMs ?? 0,
    failures: ofFile.filter(({ error }) => error !== null).length,
  }))
}

/** How long at least one of these reads, which come in the order of their starts, was waiting: many wait side by side. */
function timeWaitedMs(reads: readonly Read[]): number {
  let [total, counted] = [0, Number.NEGATIVE_INFINITY]
  for (const { atMs, waitedMs } of reads) {
    const end = atMs + waitedMs
    total += Math.max(0, end - Math.max(atMs, counted))
    counted = Math.max(counted, end)
  }
  return total
}

function describeFiles(files: readonly WaitedFile[], output: Output): string {
  const columns = [
    { heading: 'WAITED', align: 'right' },
    { heading: 'LONGEST', align: 'right' },
    { heading: 'READS', align: 'right' },
    { heading: 'BYTES', align: 'right' },
    { heading: 'FILE' },
  ] as const
  const rows = files.map((file) => [
    formatMs(file.waitedMs),
    formatMs(file.longestMs),
    String(file.reads),
    formatBytes(file.bytes),
    file.failures === 0
      ? named(file.path)
      : `${named(file.path)} (${count(file.failures, 'read')} failed)`,
  ])
  return table(columns, rows, output)
}

function describeReads(reads: readonly Read[], output: Output): string {
  const columns = [
    { heading: 'AT' },
    { heading: 'WAITED', align: 'right' },
    { heading: 'OFFSET', align: 'right' },
    { heading: 'BYTES', align: 'right' },
    { heading: 'FILE' },
  ] as const
  const rows = reads.map((read) => [
    new Date(read.atMs).toISOString(),
    formatMs(read.waitedMs),
    String(read.offset),
    formatBytes(read.bytes),
    read.error === null ? named(read.path) : `${named(read.path)}: ${read.error}`,
  ])
  return table(columns, rows, output)
}

/** Bytes between files, such as tar headers, have no path. */
function named(path: string): string {
  return path === '' ? '(between files)' : path
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0)
}
