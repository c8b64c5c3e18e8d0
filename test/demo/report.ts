import { Output } from '../../agent/cli/output.ts'
import { count, formatBytes, formatMs } from '../../agent/cli/quantity.ts'
import { fields, table } from '../../agent/cli/table.ts'
import type { FetchedBytes } from './fetched-bytes.ts'
import { totalBytes } from './fetched-bytes.ts'
import type { PublishedImage } from './publish.ts'
import type { TimedRun } from './timed-run.ts'

/** What the demo has measured. */
export type Figures = {
  readonly image: PublishedImage
  /** The first run, with nothing of the image on the node. */
  readonly cold: TimedRun
  readonly coldFetched: FetchedBytes
  /** Files of which a read had to wait, in the first run. */
  readonly filesWaitedFor: number
  /** The same again. */
  readonly warm: TimedRun
  /** Fetched by the second run alone, in bytes. */
  readonly warmFetchedBytes: number
}

/** The figures for a person, and what to try next. */
export function report(figures: Figures, stream: NodeJS.WriteStream): string {
  const output = new Output({ format: 'text', quiet: false, stream })
  const { image, cold, coldFetched, warm, warmFetchedBytes, filesWaitedFor } = figures
  const fetched = totalBytes(coldFetched)
  const share = ((fetched / image.builtBytes) * 100).toFixed(1)
  const sources = [...coldFetched].map(([source, bytes]) => `${formatBytes(bytes)} by ${source}`)
  const columns = [
    { heading: '' },
    { heading: 'COLD', align: 'right' },
    { heading: 'WARM', align: 'right' },
  ] as const
  const row = (name: string, value: (run: TimedRun) => number): string[] => [
    name,
    ...[cold, warm].map((run) => formatMs(value(run))),
  ]
  const rows = [
    row('Pull by CID', ({ pullMs }) => pullMs),
    row('Create the container', ({ createMs }) => createMs),
    row('Start to first line', ({ firstLineMs }) => firstLineMs),
    row('All of it', ({ totalMs }) => totalMs),
    ['Fetched', formatBytes(fetched), formatBytes(warmFetchedBytes)],
  ]
  return `${output.style('bold', 'What happened')}

${fields([
  [
    'Image',
    `${count(image.layers, 'layer')}, ${count(image.files, 'file')}, ${formatBytes(image.unpackedBytes)} unpacked`,
  ],
  [
    'Fetched',
    `${formatBytes(fetched)}; a download of the whole image would have moved ${formatBytes(image.builtBytes)}`,
  ],
  ['Share', `${share} %`],
  ['From', `${sources.join(', ') || 'nowhere'}; each block verified by its CID`],
  ['Waited for', `${count(filesWaitedFor, 'file')} of ${image.files.toLocaleString('en')}`],
])}

${table(columns, rows, output)}

${output.style('bold', 'What to try next')}, as root

  The same by bitswap alone    npm exec -c 'node test/demo/demo.ts --bitswap'
  An image of your own         agent/cli/bin/ipdr push --serve docker-archive:app.tar
  More figures                 make bench
  On a node                    README.md, "On a node"`
}
