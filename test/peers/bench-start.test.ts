import { expect, test } from 'vitest'
import { runBenchStart } from '../bench/start/run-bench-start.ts'
import { Scratch } from '../support/scratch.ts'

// Goal: the benchmark compares with others as they are meant to be used. Method: each starts the smallest image, and what it moved tells
// how: an index or a table of contents first, then parts of layers.

test('other snapshotters start a workload in the benchmark by their own indexes, from parts of its layers', async () => {
  await using scratch = Scratch.open('bench-start-peers')
  const words = ['--arms', 'soci,estargz,estargz-optimised', '--rounds', '1', '--traces']
  const places = ['--to', scratch.dir, '--workloads', 'busybox', '--links', '1g']
  const { rows, failures } = await runBenchStart([...words, ...places])
  expect(failures).toEqual([])
  expect(rows.map(({ arm }) => arm)).toEqual(['soci', 'estargz', 'estargz-optimised'])
  for (const { starts } of rows) {
    const lines = starts.flatMap((start) => start.trace?.map(({ line }) => line) ?? [])
    const ofBlobs = lines.filter((line) => line.includes('/blobs/') && line.includes(' bytes='))
    expect(ofBlobs).not.toEqual([])
  }
}, 600_000)
