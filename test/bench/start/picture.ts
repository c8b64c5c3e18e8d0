import type { StartRow } from './results.ts'

// The results as an SVG: a column for each link, a row for each workload, in each cell a bar for each arm. Colours and text are such
// that it can be read on a light page and on a dark one.

/** Of the picture, in pixels. */
const WIDTH = 900
const LABEL_WIDTH = 80
const BAR_HEIGHT = 9
const BAR_STEP = 12
const CELL_GAP = 16
const LEGEND_STEP = 18
const HEADER_HEIGHT = 26
/** Beside a bar, for its time. */
const TIME_WIDTH = 52

/** Of arms, in the order in which they are met: grey for who is lazy in nothing, then others', then ours. */
const COLOURS: Readonly<Record<string, string>> = {
  overlayfs: '#8b949e',
  soci: '#bf8700',
  estargz: '#6cb6ff',
  'estargz-optimised': '#316dca',
  ipdr: '#6bc46d',
  'ipdr-list': '#2b8a3e',
  'ipdr-optimised': '#1a5427',
}
const OTHER_COLOUR = '#986ee2'

const LINK_TITLES: Readonly<Record<string, string>> = {
  '1g': '1 Gbit/s, 1 ms',
  '100m': '100 Mbit/s, 20 ms',
  '20m': '20 Mbit/s, 80 ms',
}

const STYLE = `text { font: 11px system-ui, sans-serif; fill: #1f2328 }
.strong { font-weight: 600 }
.limit { stroke: #cf222e; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .limit { stroke: #ff7b72 } }`

/** What is drawn of a row. */
export type DrawnRow = Pick<StartRow, 'workload' | 'link' | 'arm' | 'title' | 'readyMs' | 'limitMs'>

/** The picture of all rows, as text. */
export function drawPicture({
  rows,
  rounds,
}: {
  readonly rows: readonly DrawnRow[]
  readonly rounds: number
}): string {
  const links = [...new Set(rows.map(({ link }) => link))]
  const workloads = [...new Set(rows.map(({ workload }) => workload))]
  const arms = new Map(rows.map(({ arm, title }) => [arm, title]))
  const legend = drawLegend(arms)
  const top = legend.height + HEADER_HEIGHT
  const cellWidth = (WIDTH - LABEL_WIDTH) / Math.max(links.length, 1)
  const cellHeight = arms.size * BAR_STEP + CELL_GAP
  const headers = links.map((link, column) =>
    text(LABEL_WIDTH + column * cellWidth, top - 9, LINK_TITLES[link] ?? link, 'strong'),
  )
  const cells = workloads.flatMap((workload, row) => {
    const y = top + row * cellHeight
    const label = text(0, y + BAR_HEIGHT, workload, 'strong')
    const ofLinks = links.flatMap((link, column) => {
      const found = rows.filter((one) => one.workload === workload && one.link === link)
      return drawCell(found, [...arms.keys()], {
        x: LABEL_WIDTH + column * cellWidth,
        y,
        width: cellWidth - TIME_WIDTH - CELL_GAP,
      })
    })
    return [label, ...ofLinks]
  })
  const height = top + workloads.length * cellHeight + LEGEND_STEP
  const starts = rounds === 1 ? 'one start each' : `medians of ${rounds} starts`
  const note = `Seconds from the pull until the container is ready, ${starts}; red: the least time in which the link could have carried what is needed.`
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escape(note)}">`,
    `<style>${STYLE}</style>`,
    ...legend.parts,
    ...headers,
    ...cells,
    text(0, height - 5, note),
    '</svg>',
    '',
  ].join('\n')
}

function drawLegend(arms: ReadonlyMap<string, string>): { parts: string[]; height: number } {
  const columns = 3
  const parts = [...arms].flatMap(([arm, title], index) => {
    const x = (index % columns) * (WIDTH / columns)
    const y = Math.floor(index / columns) * LEGEND_STEP
    return [bar({ x, y: y + 3, width: 14 }, colourOf(arm)), text(x + 20, y + 11, title)]
  })
  return { parts, height: Math.ceil(arms.size / columns) * LEGEND_STEP }
}

type Box = { readonly x: number; readonly y: number; readonly width: number }

/** Bars as long as their times, the longest as long as the cell. */
function drawCell(
  rows: readonly DrawnRow[],
  arms: readonly string[],
  { x, y, width }: Box,
): string[] {
  const longest = Math.max(...rows.map(({ readyMs }) => readyMs))
  return rows.flatMap(({ arm, readyMs, limitMs }) => {
    const barY = y + arms.indexOf(arm) * BAR_STEP
    const length = (readyMs / longest) * width
    const limitX = round(x + Math.min(limitMs / longest, 1) * width)
    return [
      bar({ x, y: barY, width: length }, colourOf(arm)),
      `<line class="limit" x1="${limitX}" x2="${limitX}" y1="${barY - 1}" y2="${barY + BAR_HEIGHT + 1}"/>`,
      text(x + Math.max(length, limitX - x) + 4, barY + BAR_HEIGHT, seconds(readyMs)),
    ]
  })
}

function bar({ x, y, width }: Box, colour: string): string {
  return `<rect x="${round(x)}" y="${y}" width="${round(width)}" height="${BAR_HEIGHT}" fill="${colour}"/>`
}

function text(x: number, y: number, words: string, name?: string): string {
  const style = name === undefined ? '' : ` class="${name}"`
  return `<text x="${round(x)}" y="${round(y)}"${style}>${escape(words)}</text>`
}

function colourOf(arm: string): string {
  return COLOURS[arm] ?? OTHER_COLOUR
}

/** Three digits that count. */
function seconds(ms: number): string {
  const value = ms / 1000
  return value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)
}

function round(pixels: number): number {
  return Math.round(pixels * 10) / 10
}

function escape(words: string): string {
  return words
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
}
