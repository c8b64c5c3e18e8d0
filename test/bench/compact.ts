import type { BenchContext, Measurement } from './bench-context.ts'
import { BenchNode } from './bench-node.ts'
import { type LazyStart, startLazily } from './cold-start.ts'
import { DelayedGateway } from './delayed-gateway.ts'
import type { Figure } from './figure.ts'
import { median, medians } from './rounds.ts'
import { compressPlainly } from './throughput.ts'

/** How far away the publisher is, in ms a round trip: another city. */
const DISTANT_MS = 20

/** What `ipdr push --compact` makes of the demo's image, against what `ipdr push` does. */
export const compact: Measurement = {
  names: ['compact-zstd', 'compact-push', 'compact-start-time', 'compact-fetched', 'compact-whole'],
  measure: measureCompact,
}

async function measureCompact(context: BenchContext): Promise<Figure[]> {
  const { publisher, rounds, say } = context
  const { layout, published } = await context.demo()
  say('publishing the demo image compactly')
  const compacted = await publisher.push(layout, ['--compact'])
  say('compressing the same layers with plain zstd')
  const plain = compressPlainly(layout)
  await using far = await DelayedGateway.start(publisher.gatewayUrl, DISTANT_MS)
  const starts = { usual: [], compact: [] } as Record<Arm, LazyStart[]>
  const start = (arm: Arm, reference: string) => async (): Promise<number> => {
    say(`starting the demo image: ${arm}`)
    const one = await startLazily(far.url, reference)
    starts[arm].push(one)
    return one.ms
  }
  const startMs = await medians<Arm>(rounds, {
    usual: start('usual', published.reference),
    compact: start('compact', compacted.reference),
  })
  const pull = (arm: Arm, reference: string) => async (): Promise<number> => {
    say(`fetching the demo image whole: ${arm}`)
    await using node = await BenchNode.start(publisher)
    return await node.pull(reference, { all: true })
  }
  const pullMs = await medians<Arm>(rounds, {
    usual: pull('usual', published.reference),
    compact: pull('compact', compacted.reference),
  })
  const of = (arm: Arm, key: keyof LazyStart): number => median(starts[arm].map((one) => one[key]))
  return [
    {
      name: 'compact-zstd',
      value: compacted.publishedBytes / plain.bytes,
      unit: 'x',
      limit: { atMost: 1.06 },
      detail: `of plain zstd: ${mega(compacted.publishedBytes)} in ${compacted.blocks} blocks against ${mega(plain.bytes)}; usual ${mega(published.publishedBytes)} in ${published.blocks}`,
    },
    {
      name: 'compact-push',
      value: compacted.ms / published.ms,
      unit: 'x',
      detail: `${seconds(compacted.ms)} against ${seconds(published.ms)}, once each`,
    },
    {
      name: 'compact-start-time',
      value: startMs.compact / startMs.usual,
      unit: 'x',
      detail: `first line after ${seconds(startMs.compact)} (${of('compact', 'misses')} reads that waited) against ${seconds(startMs.usual)} (${of('usual', 'misses')}); ${DISTANT_MS} ms from the peer`,
    },
    {
      name: 'compact-fetched',
      value: of('compact', 'fetched') / of('usual', 'fetched'),
      unit: 'x',
      detail: `${mega(of('compact', 'fetched'))} against ${mega(of('usual', 'fetched'))} in these starts`,
    },
    {
      name: 'compact-whole',
      value: pullMs.compact / pullMs.usual,
      unit: 'x',
      detail: `all of it on loopback: ${seconds(pullMs.compact)} against ${seconds(pullMs.usual)}`,
    },
  ]
}

type Arm = 'usual' | 'compact'

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`
}

function mega(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`
}
