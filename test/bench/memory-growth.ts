import { join } from 'node:path'
import { fetchedBytes, totalBytes } from '../demo/fetched-bytes.ts'
import { Scratch } from '../support/scratch.ts'
import type { BenchContext, Measurement } from './bench-context.ts'
import { BenchNode } from './bench-node.ts'
import type { Figure } from './figure.ts'
import { slopeOf } from './rounds.ts'
import { BIG_FILE, writeReadSample } from './sample-layouts.ts'
import { residentMemory } from './start/process-cost.ts'
import { timedRead } from './timed-read.ts'

const MiB = 1024 ** 2

/** A quarter of what is read, so that reads go on to wait for the peer, and layers' bytes to be evicted. */
const STORE_BYTES_MAX = 128 * MiB

/** Pages of one pass; caches are dropped before each. */
const READS = 3_000

/** Of the time, as long as caches and pools fill: not part of the slope. */
const WARM_UP_SHARE = 1 / 4

/** Memory of the data worker over an hour of random reads from a store that is too small for them. */
export const memoryGrowth: Measurement = {
  names: ['hour-growth', 'hour-memory'],
  isLong: true,
  measure: measureGrowth,
}

async function measureGrowth({ publisher, minutes, say }: BenchContext): Promise<Figure[]> {
  await using scratch = Scratch.open('bench-growth')
  say('making an image with a file of 512 MiB')
  const sample = await writeReadSample(scratch.dir)
  const { reference } = await publisher.push(sample.layout)
  await using node = await BenchNode.start(publisher, { storeBytesMax: STORE_BYTES_MAX })
  await node.pull(reference, { all: false })
  const [layer = 0] = node.layerIds
  const path = join(await node.mountLayer(layer, 'fuse'), BIG_FILE)
  const startedAt = performance.now()
  const samples: { hours: number; mib: number }[] = []
  let reads = 0
  for (let pass = 0; performance.now() - startedAt < minutes * 60_000; pass++) {
    await timedRead({
      kind: 'random',
      cache: 'cold',
      paths: [path],
      memoryBytes: 0,
      reads: READS,
      seed: pass,
    })
    reads += READS
    const hours = (performance.now() - startedAt) / 3_600_000
    samples.push({ hours, mib: residentMemory(node.agent.workerPid).totalMiB })
    say(`${reads} reads, ${samples.at(-1)?.mib.toFixed(0)} MiB`)
  }
  const steady = samples.slice(Math.floor(samples.length * WARM_UP_SHARE))
  const slope = slopeOf(steady.map(({ hours, mib }) => [hours, mib]))
  const bytes = totalBytes(await fetchedBytes(node.agent))
  return [
    {
      name: 'hour-growth',
      value: slope,
      unit: 'MiB/h',
      limit: { atMost: 1 },
      detail: `${minutes} minutes, ${reads} pages, ${(bytes / 1e9).toFixed(1)} GB fetched; VmRSS ${steady[0]?.mib.toFixed(0)} MiB after a quarter of it, ${steady.at(-1)?.mib.toFixed(0)} at the end`,
    },
    {
      name: 'hour-memory',
      value: residentMemory(node.agent.workerPid).peakMiB,
      unit: 'MiB',
      limit: { atMost: 150 },
      detail: 'the most that the data worker ever had resident',
    },
  ]
}
