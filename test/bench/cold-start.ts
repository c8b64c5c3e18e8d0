import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fetchedBytes, totalBytes } from '../demo/fetched-bytes.ts'
import { timedRun } from '../demo/timed-run.ts'
import { AgentProcess } from '../support/agent.ts'
import { Containerd, type ContainerdOptions, writeHostsFile } from '../support/containerd.ts'
import { Cri } from '../support/cri.ts'
import { type OciRegistry, startOciRegistry } from '../support/oci-registry.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import type { BenchContext, Measurement } from './bench-context.ts'
import type { Figure } from './figure.ts'
import { median, medians } from './rounds.ts'

/** What the container runs: enough of numpy that its libraries are needed too. */
export const COMMAND: readonly string[] = [
  'python3',
  '-c',
  'import numpy; print(numpy.linalg.norm([3, 4]))',
]

/** Ten minutes for one start, at a load of 100. */
const DEADLINE_MS = 600_000

/** From the pull of the demo's image on an empty node to its first line, from a peer and from a registry, both on loopback. */
export const coldStart: Measurement = {
  names: ['cold-start-fetched', 'cold-start-time', 'miss-p50', 'miss-p99'],
  measure: measureColdStart,
}

async function measureColdStart(context: BenchContext): Promise<Figure[]> {
  const { publisher, rounds, say } = context
  const { layout, published } = await context.demo()
  await using scratch = Scratch.open('bench-registry')
  await using registry = await startOciRegistry(scratch)
  const image = await registry.push(layout, 'demo')
  const lazy: LazyStart[] = []
  const ms = await medians(rounds, {
    lazy: async () => {
      say('starting the demo image lazily')
      const start = await startLazily(publisher.gatewayUrl, published.reference)
      lazy.push(start)
      return start.ms
    },
    overlayfs: async () => {
      say('starting the demo image from a registry, on overlayfs')
      return startFromRegistry(registry, image)
    },
  })
  const bytes = median(lazy.map(({ fetched }) => fetched))
  const of = (key: keyof LazyStart): number => median(lazy.map((start) => start[key]))
  return [
    {
      name: 'cold-start-fetched',
      value: (bytes / published.publishedBytes) * 100,
      unit: '%',
      limit: { atMost: 25 },
      detail: `${mega(bytes)} of ${mega(published.publishedBytes)}`,
    },
    {
      name: 'cold-start-time',
      value: ms.lazy / ms.overlayfs,
      unit: 'x',
      detail: `first line after ${seconds(ms.lazy)} (pull ${seconds(of('pullMs'))}, create ${seconds(of('createMs'))}, run ${seconds(of('runMs'))}); gzip image from docker-registry on overlayfs ${seconds(ms.overlayfs)}`,
    },
    {
      name: 'miss-p50',
      value: of('missP50Ms'),
      unit: 'ms',
      detail: `of ${of('misses')} reads that waited for a peer`,
    },
    { name: 'miss-p99', value: of('missP99Ms'), unit: 'ms', detail: 'of the same' },
  ]
}

/** One lazy start: times in ms, bytes fetched until the container ended, and reads that waited. */
export type LazyStart = Readonly<
  Record<
    'ms' | 'pullMs' | 'createMs' | 'runMs' | 'fetched' | 'misses' | 'missP50Ms' | 'missP99Ms',
    number
  >
>

/** Pulls and runs the image on an empty node that asks this gateway. */
export async function startLazily(gateway: string, reference: string): Promise<LazyStart> {
  await using opened = new AsyncDisposableStack()
  const scratch = opened.use(Scratch.open('bench-lazy'))
  const agent = opened.use(await AgentProcess.start(scratch, { gateways: [gateway] }))
  const snapshotter = { name: 'ipdr', socketPath: agent.snapshotterSocket }
  const run = await startOn(
    { scratch, snapshotter },
    { host: 'ipdr.internal', url: agent.registryUrl },
    reference,
  )
  using admin = agent.admin()
  const status = await admin.calls.Status({}, { signal: AbortSignal.timeout(DEADLINE_MS) })
  return {
    ms: run.totalMs,
    pullMs: run.pullMs,
    createMs: run.createMs,
    runMs: run.firstLineMs,
    fetched: totalBytes(await fetchedBytes(agent)),
    misses: Number(status.missesTotal),
    missP50Ms: status.missP50Ms,
    missP99Ms: status.missP99Ms,
  }
}

async function startFromRegistry({ host }: OciRegistry, image: string): Promise<number> {
  await using scratch = Scratch.open('bench-overlay')
  const run = await startOn(
    { scratch, snapshotter: 'overlayfs' },
    { host, url: `http://${host}` },
    image,
  )
  return run.totalMs
}

/** Starts a containerd, and with caches dropped pulls and runs the image as a kubelet does. */
async function startOn(
  options: Pick<ContainerdOptions, 'scratch' | 'snapshotter'>,
  { host, url }: { host: string; url: string },
  image: string,
): Promise<Awaited<ReturnType<typeof timedRun>>> {
  const certsDir = join(options.scratch.dir, 'certs.d')
  writeHostsFile(certsDir, host, url)
  await using containerd = await Containerd.start({ ...options, certsDir })
  using cri = await Cri.connect(containerd)
  const pod = await cri.runPodSandbox()
  await runCommand('sync', [])
  writeFileSync('/proc/sys/vm/drop_caches', '3')
  try {
    return await timedRun(
      cri,
      { pod, image, command: COMMAND },
      { signal: AbortSignal.timeout(DEADLINE_MS), say: () => {} },
    )
  } finally {
    await cri.removePodSandbox(pod)
  }
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`
}

function mega(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`
}
