import { expect, test } from 'vitest'
import { parseStartOptions } from './options.ts'

function rowsOf(...words: string[]): string[] {
  return parseStartOptions(words).cells.flatMap(({ workload, link, arms }) =>
    arms.map((arm) => `${workload.name}/${link.name}/${arm.name}`),
  )
}

test('without options every workload is measured behind every link by every arm, five times', () => {
  const { cells, rounds, output } = parseStartOptions([])
  expect({ cells: cells.length, rounds, output }).toEqual({ cells: 18, rounds: 5, output: 'text' })
  expect(cells.every(({ arms }) => arms.length === 7)).toBe(true)
  expect(rowsOf()).not.toContain('python/unshaped/ipdr')
})

test('workloads, links and arms are chosen by name, and keep their own order', () => {
  expect(
    rowsOf('--workloads', 'node,python', '--links', '20m', '--arms', 'ipdr-list', '--arms', 'ipdr'),
  ).toEqual(['python/20m/ipdr', 'python/20m/ipdr-list', 'node/20m/ipdr', 'node/20m/ipdr-list'])
  expect(rowsOf('--workloads', 'node', '--links', 'unshaped', '--arms', 'soci')).toEqual([
    'node/unshaped/soci',
  ])
})

test('--only leaves the rows that it names, whole or by their beginning', () => {
  expect(rowsOf('--only', 'python/100m/ipdr', '--only', 'nginx/1g')).toEqual([
    'python/100m/ipdr',
    ...[
      'overlayfs',
      'soci',
      'estargz',
      'estargz-optimised',
      'ipdr',
      'ipdr-list',
      'ipdr-optimised',
    ].map((arm) => `nginx/1g/${arm}`),
  ])
})

test.for([
  [['--links', '3g'], "--links: there is no '3g'; there are 1g, 100m, 20m, unshaped"],
  [['--arms', 'ipdr,'], "--arms: there is no ''"],
  [['--only', 'python/100'], "--only 'python/100' is no row"],
  [['--links', '1g', '--only', 'python/100m'], "--only 'python/100m' is no row"],
  [['--rounds', '0'], "--rounds is a whole number from 1 to 100, not '0'"],
  [['--output', 'xml'], "--output is text or json, not 'xml'"],
] as const)('%s is refused in a sentence', ([words, sentence]) => {
  expect(() => parseStartOptions(words)).toThrow(sentence)
})
