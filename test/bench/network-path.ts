import { MEMORY_FLAGS } from '../../agent/supervisor.ts'
import type { BenchContext, Measurement } from './bench-context.ts'
import type { Figure } from './figure.ts'
import { inOwnProcess } from './in-own-process.ts'
import { median } from './rounds.ts'
import { cpuSeconds } from './start/process-cost.ts'

/** What block-reader.ts is told: every block below `root`, `atOnce` at a time. */
export type BlocksToRead = {
  readonly gateway: string
  readonly root: string
  readonly atOnce: number
}

/** What block-reader.ts found in the second of two passes. */
export type BlocksRead = {
  readonly blocks: number
  /** Those that came over the network: what is in memory already costs nothing. */
  readonly bytes: number
  /** In both passes, with what leads to the leaves. */
  readonly allBytes: number
  readonly ms: number
  readonly cpuSeconds: number
}

/** As many as the agent fetches at once that no page fault waits for. */
const AT_ONCE = 12

const GIB = 1024 ** 3

/** Ten minutes: 324 MB at half a MB/s. */
const DEADLINE_MS = 600_000

/** All blocks of the demo's image from a gateway on loopback: fetched and verified, nothing more. */
export const networkPath: Measurement = {
  names: ['network-path', 'network-path-cpu'],
  measure: measureNetworkPath,
}

async function measureNetworkPath(context: BenchContext): Promise<Figure[]> {
  const { publisher, rounds, say } = context
  const { published } = await context.demo()
  const root = published.reference.replace(/^.*\//, '')
  const task: BlocksToRead = { gateway: publisher.gatewayUrl, root, atOnce: AT_ONCE }
  const runs: (BlocksRead & { readonly servedCpuSeconds: number })[] = []
  for (let round = 0; round < rounds; round++) {
    say('fetching the blocks of the demo image')
    const before = cpuSeconds([publisher.pid])
    const read = await inOwnProcess<BlocksRead>('block-reader.ts', task, {
      flags: MEMORY_FLAGS,
      deadlineMs: DEADLINE_MS,
    })
    runs.push({ ...read, servedCpuSeconds: cpuSeconds([publisher.pid]) - before })
  }
  const of = (value: (run: (typeof runs)[number]) => number): number => median(runs.map(value))
  const served = of((run) => run.servedCpuSeconds / (run.allBytes / GIB))
  const { blocks = 0, bytes = 0 } = runs[0] ?? {}
  return [
    {
      name: 'network-path',
      value: of((run) => run.bytes / 1000 / run.ms),
      unit: 'MB/s',
      limit: { atLeast: 400 },
      detail: `${(bytes / 1e6).toFixed(0)} MB in ${blocks} blocks of ${(bytes / blocks / 1e3).toFixed(0)} kB, ${AT_ONCE} at a time`,
    },
    {
      name: 'network-path-cpu',
      value: of((run) => run.cpuSeconds / (run.bytes / GIB)),
      unit: 's/GiB',
      limit: { atMost: 2.5 },
      detail: `CPU of the reader for a GiB of blocks, SHA-256 included; of ipdr serve ${served.toFixed(1)} s/GiB`,
    },
  ]
}
