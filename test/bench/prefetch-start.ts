import type { BenchContext, Measurement } from './bench-context.ts'
import { COMMAND, type LazyStart, startLazily } from './cold-start.ts'
import { DelayedGateway } from './delayed-gateway.ts'
import type { Figure } from './figure.ts'
import { optimize } from './optimize.ts'
import { median, medians } from './rounds.ts'

/** How far away the publisher is, in ms a round trip: another city. */
const DISTANT_MS = 20

/** The cold start of the demo's image with the list that `ipdr optimize` made, against the same without, near and far from the peer. */
export const prefetchStart: Measurement = {
  names: ['prefetch-start-time', 'prefetch-start-time-far', 'prefetch-waits', 'prefetch-fetched'],
  measure: measurePrefetch,
}

async function measurePrefetch(context: BenchContext): Promise<Figure[]> {
  const { publisher, rounds, say } = context
  const { published } = await context.demo()
  say('running the demo image for its list')
  const optimized = await optimize(publisher, published.reference, COMMAND)
  await using far = await DelayedGateway.start(publisher.gatewayUrl, DISTANT_MS)
  const starts = { plain: [], listed: [], farPlain: [], farListed: [] } as Record<Arm, LazyStart[]>
  const arm = (name: Arm, gateway: string, reference: string) => async (): Promise<number> => {
    say(`starting the demo image: ${name}`)
    const start = await startLazily(gateway, reference)
    starts[name].push(start)
    return start.ms
  }
  const ms = await medians<Arm>(rounds, {
    plain: arm('plain', publisher.gatewayUrl, published.reference),
    listed: arm('listed', publisher.gatewayUrl, optimized.reference),
    farPlain: arm('farPlain', far.url, published.reference),
    farListed: arm('farListed', far.url, optimized.reference),
  })
  const of = (name: Arm, key: keyof LazyStart): number =>
    median(starts[name].map((start) => start[key]))
  const share = (optimized.shareOfImage * 100).toFixed(1)
  return [
    {
      name: 'prefetch-start-time',
      value: ms.listed / ms.plain,
      unit: 'x',
      detail: `first line after ${seconds(ms.listed)}, without a list ${seconds(ms.plain)}; peer on loopback`,
    },
    {
      name: 'prefetch-start-time-far',
      value: ms.farListed / ms.farPlain,
      unit: 'x',
      detail: `first line after ${seconds(ms.farListed)} (run ${seconds(of('farListed', 'runMs'))}), without ${seconds(ms.farPlain)} (run ${seconds(of('farPlain', 'runMs'))}); ${DISTANT_MS} ms from the peer`,
    },
    {
      name: 'prefetch-waits',
      value: of('farListed', 'misses') / of('farPlain', 'misses'),
      unit: 'x',
      detail: `${of('farListed', 'misses')} reads that waited, without ${of('farPlain', 'misses')}; far`,
    },
    {
      name: 'prefetch-fetched',
      value: of('farListed', 'fetched') / of('farPlain', 'fetched'),
      unit: 'x',
      detail: `${mega(of('farListed', 'fetched'))}, without ${mega(of('farPlain', 'fetched'))}; ${optimized.ranges} ranges, ${share} % of the image`,
    },
  ]
}

type Arm = 'plain' | 'listed' | 'farPlain' | 'farListed'

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`
}

function mega(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`
}
