import { expect, test } from 'vitest'
import type { MeasuredStart } from './measured-start.ts'
import { rowsOf } from './results.ts'

const LINK = { name: '100m', bitsPerSecond: 100e6, roundTripMs: 20 }

function start(readyMs: number, more: Partial<MeasuredStart> = {}): MeasuredStart {
  return {
    pullMs: 1,
    createMs: 2,
    runMs: 3,
    readyMs,
    downBytes: 1000,
    upBytes: 10,
    connections: 1,
    requests: 2,
    cpuSeconds: 0.5,
    peakMemoryBytes: 1 << 20,
    counters: {},
    trace: [{ at: 1, line: 'GET /' }],
    ...more,
  }
}

const OVERLAYFS = { name: 'overlayfs', title: 'all of it' }
const LAZY = { name: 'lazy', title: 'some of it' }

test('a row has the median of every number that its starts have, and the extremes of their ready times', () => {
  const starts = [
    start(300, { downBytes: 5, counters: { waits: 9 } }),
    start(100, { downBytes: 7, counters: { waits: 1 } }),
    start(200, { downBytes: 6, counters: { waits: 2 } }),
  ]
  const [row] = rowsOf('python', LINK, [{ arm: LAZY, neededBytes: 0, starts }], { traces: false })
  expect(row).toMatchObject({
    workload: 'python',
    link: '100m',
    arm: 'lazy',
    readyMs: 200,
    readyMsMin: 100,
    readyMsMax: 300,
    downBytes: 6,
    counters: { waits: 2 },
  })
})

test('a row has the physical limit of the bytes that it needs', () => {
  const [row] = rowsOf('python', LINK, [{ arm: LAZY, neededBytes: 12.5e6, starts: [start(1)] }], {
    traces: false,
  })
  expect(row?.limitMs).toBeCloseTo(1060)
})

test('rows are compared with overlayfs where that was measured too', () => {
  const lazy = { arm: LAZY, neededBytes: 0, starts: [start(50)] }
  const whole = { arm: OVERLAYFS, neededBytes: 0, starts: [start(200)] }
  const both = rowsOf('python', LINK, [whole, lazy], { traces: false })
  expect(both.map(({ ofOverlayfs }) => ofOverlayfs)).toEqual([1, 0.25])
  const [alone] = rowsOf('python', LINK, [lazy], { traces: false })
  expect(alone).not.toHaveProperty('ofOverlayfs')
})

test('an arm that never started has no row', () => {
  const never = { arm: OVERLAYFS, neededBytes: 0, starts: [] }
  expect(rowsOf('python', LINK, [never], { traces: false })).toEqual([])
})

test('requests are kept one by one only if asked for', () => {
  const measured = [{ arm: LAZY, neededBytes: 0, starts: [start(1)] }]
  expect(rowsOf('p', LINK, measured, { traces: false })[0]?.starts[0]).not.toHaveProperty('trace')
  expect(rowsOf('p', LINK, measured, { traces: true })[0]?.starts[0]).toHaveProperty('trace')
})
