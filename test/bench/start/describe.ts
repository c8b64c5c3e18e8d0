import type { Output } from '../../../agent/cli/output.ts'
import { table } from '../../../agent/cli/table.ts'
import type { StartResults, StartRow } from './results.ts'

const COLUMNS = [
  { heading: 'WORKLOAD' },
  { heading: 'LINK' },
  { heading: 'ARM' },
  ...['READY', 'PULL', 'CREATE', 'RUN', 'MIN', 'MAX', 'LIMIT', 'x LIMIT', 'x OVERLAYFS'].map(right),
  ...['MOVED', 'NEEDED', 'REQUESTS', 'CPU', 'MEMORY'].map(right),
]

/** The results as a table for people. */
export function describe({ rounds, load, rows, failures }: StartResults, output: Output): string {
  const loads = [load.before, load.after].map(([minute = 0]) => minute.toFixed(1))
  return [
    table(COLUMNS, rows.map(cellsOf), output),
    '',
    `Medians of ${rounds} rounds; load average ${loads.join(' before, ')} after.`,
    'READY: from the pull to the first line or answer. LIMIT: bytes needed at the speed of the link, and 3 round trips. MOVED: on the wire, both ways.',
    ...failures.map(
      ({ workload, link, arm, reason }) => `Not measured: ${workload}/${link}/${arm}: ${reason}`,
    ),
  ].join('\n')
}

function right(heading: string): { heading: string; align: 'right' } {
  return { heading, align: 'right' }
}

function cellsOf(row: StartRow): string[] {
  return [
    row.workload,
    row.link,
    row.title,
    ...[row.readyMs, row.pullMs, row.createMs, row.runMs].map(seconds),
    ...[row.readyMsMin, row.readyMsMax, row.limitMs].map(seconds),
    (row.readyMs / row.limitMs).toFixed(2),
    row.ofOverlayfs?.toFixed(3) ?? '',
    mega(row.downBytes + row.upBytes),
    mega(row.neededBytes),
    `${row.requests}`,
    `${row.cpuSeconds.toFixed(1)} s`,
    `${Math.round(row.peakMemoryBytes / 2 ** 20)} MiB`,
  ]
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`
}

function mega(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`
}
