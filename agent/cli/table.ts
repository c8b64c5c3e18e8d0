import CliTable from 'cli-table3'
import { plain } from './failure.ts'
import type { Output } from './output.ts'

/** A column: its heading, and `right` for figures. */
export type Column = { readonly heading: string; readonly align?: 'left' | 'right' }

const NO_BORDER = {
  top: '',
  'top-mid': '',
  'top-left': '',
  'top-right': '',
  bottom: '',
  'bottom-mid': '',
  'bottom-left': '',
  'bottom-right': '',
  left: '',
  'left-mid': '',
  mid: '',
  'mid-mid': '',
  right: '',
  'right-mid': '',
  middle: '  ',
} as const

/** Rows under headings, without lines: as ps(1) and kubectl print them, so that awk can read them too. */
export function table(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  output: Output,
): string {
  const drawn = new CliTable({
    head: columns.map(({ heading }) => output.style('bold', heading)),
    colAligns: columns.map(({ align }) => align ?? 'left'),
    chars: NO_BORDER,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0, compact: true },
  })
  drawn.push(...rows.map((row) => row.map(plain)))
  return drawn
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n')
}

/** "name:  value" lines, values aligned. */
export function fields(pairs: readonly (readonly [name: string, value: string])[]): string {
  const width = Math.max(...pairs.map(([name]) => name.length)) + 2
  return pairs.map(([name, value]) => `${`${name}:`.padEnd(width)} ${plain(value)}`).join('\n')
}
