import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { Scratch } from '../../support/scratch.ts'
import { runBenchStart } from './run-bench-start.ts'

// Goal: the benchmark works, so that whoever wants its figures gets them. Method: all of it, on the smallest image, once.

test('a workload is started by each arm behind a link, and what it took and moved is written down and drawn', async () => {
  await using scratch = Scratch.open('bench-start-test')
  const words = ['--arms', 'overlayfs,ipdr,ipdr-list', '--rounds', '1', '--to', scratch.dir]
  const results = await runBenchStart([...words, '--workloads', 'busybox', '--links', '1g'])
  expect(results.failures).toEqual([])
  expect(results.rows.map(({ arm }) => arm)).toEqual(['overlayfs', 'ipdr', 'ipdr-list'])
  for (const row of results.rows) {
    expect(row.readyMs).toBeGreaterThan(row.limitMs)
    expect(row.pullMs + row.createMs + row.runMs).toBeCloseTo(row.readyMs)
    expect(row.downBytes).toBeGreaterThan(0)
    expect(row.requests).toBeGreaterThan(2)
    expect(row.cpuSeconds).toBeGreaterThan(0)
    expect(row.peakMemoryBytes).toBeGreaterThan(10 << 20)
    expect(row.ofOverlayfs).toBeGreaterThan(0)
  }
  const [whole, lazy, listed] = results.rows
  expect(whole?.downBytes).toBeGreaterThan(whole?.neededBytes ?? Number.POSITIVE_INFINITY)
  expect(lazy?.counters['prefetchedBytes']).toBe(0)
  expect(listed?.counters['prefetchedBytes']).toBeGreaterThan(0)
  const written = readFileSync(join(scratch.dir, 'results.json'), 'utf8')
  expect(JSON.parse(written)).toMatchObject({ rows: [{}, {}, {}] })
  expect(readFileSync(join(scratch.dir, 'cold-start.svg'), 'utf8')).toContain('>busybox</text>')
}, 600_000)
