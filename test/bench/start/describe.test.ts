import { PassThrough } from 'node:stream'
import { expect, test } from 'vitest'
import { Output } from '../../../agent/cli/output.ts'
import { describe } from './describe.ts'
import type { StartResults, StartRow } from './results.ts'

const ROW: StartRow = {
  workload: 'python',
  link: '100m',
  arm: 'ipdr',
  title: 'ipdr',
  readyMs: 4500,
  readyMsMin: 4000,
  readyMsMax: 5000,
  pullMs: 1500,
  createMs: 500,
  runMs: 2500,
  downBytes: 24_000_000,
  upBytes: 500_000,
  connections: 8,
  requests: 182,
  cpuSeconds: 2.53,
  peakMemoryBytes: 512 * 2 ** 20,
  counters: {},
  neededBytes: 12_000_000,
  limitMs: 1000,
  ofOverlayfs: 0.0744,
  starts: [],
}

const RESULTS: StartResults = {
  rounds: 5,
  startedAt: '2026-01-02T03:04:05.000Z',
  load: { before: [1.25], after: [2.5] },
  rows: [ROW],
  failures: [{ workload: 'python', link: '20m', arm: 'soci', reason: 'it does not serve' }],
}

function described(results: StartResults): string[] {
  const stream = new PassThrough() as never
  return describe(results, new Output({ format: 'text', quiet: false, stream })).split('\n')
}

test('a row says how long a start took, against its limit and overlayfs, and what it cost', () => {
  const [, row = ''] = described(RESULTS)
  expect(row.split(/ {2,}/)).toEqual([
    'python',
    '100m',
    'ipdr',
    '4.50 s',
    '1.50 s',
    '0.50 s',
    '2.50 s',
    '4.00 s',
    '5.00 s',
    '1.00 s',
    '4.50',
    '0.074',
    '24.5 MB',
    '12.0 MB',
    '182',
    '2.5 s',
    '512 MiB',
  ])
})

test('what could not be measured is told with its reason', () => {
  expect(described(RESULTS)).toContain('Not measured: python/20m/soci: it does not serve')
  expect(described(RESULTS).join()).toContain(
    'Medians of 5 rounds; load average 1.3 before, 2.5 after',
  )
})
