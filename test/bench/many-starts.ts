import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout } from 'node:timers/promises'
import { AgentProcess } from '../support/agent.ts'
import { Containerd, writeHostsFile } from '../support/containerd.ts'
import { Cri, type Pod } from '../support/cri.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'
import type { BenchContext, Measurement } from './bench-context.ts'
import type { EventLoopRecord } from './event-loop-recorder.ts'
import type { Figure } from './figure.ts'
import { groupAsOnNode } from './node-groups.ts'
import { median, quantile } from './rounds.ts'
import { residentMemory } from './start/process-cost.ts'

const IMAGES = 10
const CONTAINERS_EACH = 5

/** Files of an image, of which a start reads every fourth: 20 MB, a small service. */
const FILES = 80
const FILE_BYTES = 256 * 1024
const READ_EVERY = 4

/** Five minutes for all of it, at a load of 100. */
const DEADLINE_MS = 300_000

/** Waits until the log of the container is looked at again, in ms; what is ready is stamped by containerd. */
const LOOK_MS = 20

/** 50 containers of 10 images that start at the same time on an empty node, which fetches the rest of each image meanwhile. */
export const manyStarts: Measurement = {
  names: ['many-starts-ready', 'many-starts-memory', 'many-starts-event-loop'],
  measure: measureManyStarts,
}

async function measureManyStarts(context: BenchContext): Promise<Figure[]> {
  const { publisher, rounds, say } = context
  await using scratch = Scratch.open('bench-many')
  say(`publishing ${IMAGES} images`)
  const references: string[] = []
  for (let number = 0; number < IMAGES; number++) {
    const layout = await serviceImage(join(scratch.dir, `image-${number}`), number)
    references.push((await publisher.push(layout)).reference)
  }
  const runs: Starts[] = []
  for (let round = 0; round < rounds; round++) {
    say(`starting ${IMAGES * CONTAINERS_EACH} containers at once`)
    runs.push(await startAll(publisher.gatewayUrl, references))
  }
  const of = (value: (run: Starts) => number): number => median(runs.map(value))
  const p50 = of(({ readyMs }) => median(readyMs))
  const p99 = of(({ readyMs }) => quantile(readyMs, 0.99))
  const [worst] = runs.toSorted((a, b) => b.eventLoop.maxMs - a.eventLoop.maxMs)
  return [
    {
      name: 'many-starts-ready',
      value: of(({ readyMs }) => quantile(readyMs, 0.99) / median(readyMs)),
      unit: 'x',
      limit: { atMost: 3 },
      detail: `p99 ${seconds(p99)}, p50 ${seconds(p50)}; ${IMAGES} images, ${CONTAINERS_EACH} containers each, from the pulls on; ${runs[0]?.groups}`,
    },
    {
      name: 'many-starts-memory',
      value: of(({ peakMiB }) => peakMiB),
      unit: 'MiB',
      limit: { atMost: 150 },
      detail: `the most that the data worker ever had resident; ${Math.round(of(({ restMiB }) => restMiB))} MiB when it had started`,
    },
    {
      name: 'many-starts-event-loop',
      value: Math.max(...runs.map(({ eventLoop }) => eventLoop.maxMs)),
      unit: 'ms',
      limit: { atMost: 20 },
      detail: worst === undefined ? '' : describeEventLoop(worst.eventLoop, runs),
    },
  ]
}

/** From the beginning of the pulls until each container was ready; memory and event loop of the data worker. */
type Starts = {
  readonly readyMs: readonly number[]
  readonly peakMiB: number
  readonly restMiB: number
  readonly groups: string
  readonly eventLoop: EventLoopRecord
}

async function startAll(gateway: string, references: readonly string[]): Promise<Starts> {
  await using opened = new AsyncDisposableStack()
  const scratch = opened.use(Scratch.open('bench-starts'))
  const agent = opened.use(
    await AgentProcess.start(scratch, {
      gateways: [gateway],
      prefetch: { rest: true },
      env: recording(scratch.dir),
    }),
  )
  const certsDir = join(scratch.dir, 'certs.d')
  writeHostsFile(certsDir, 'ipdr.internal', agent.registryUrl)
  const snapshotter = { name: 'ipdr', socketPath: agent.snapshotterSocket }
  const containerd = opened.use(
    await Containerd.start({ scratch, snapshotter, certsDir, version: '2' }),
  )
  const groups = groupAsOnNode(agent, containerd)
  const cri = opened.use(await Cri.connect(containerd))
  const pods: Pod[] = []
  for (let pod = 0; pod < references.length * CONTAINERS_EACH; pod++) {
    pods.push(await cri.runPodSandbox())
  }
  const restMiB = residentMemory(agent.workerPid).peakMiB
  await beginRecording(scratch.dir)
  // By the wall clock, since containerd stamps the lines of a container by it.
  const startedAt = Date.now()
  const readyAt = await Promise.all(
    references.flatMap((reference, image) => {
      const pulled = cri.pullImage(reference)
      const own = pods.slice(image * CONTAINERS_EACH, (image + 1) * CONTAINERS_EACH)
      return own.map(async (pod) => {
        const container = await cri.createContainer(pod, await pulled, ['sh', '/start'])
        await cri.startContainer(container)
        const { logPath } = await cri.containerStatus(container)
        return whenReady(logPath)
      })
    }),
  )
  return {
    readyMs: readyAt.map((at) => at - startedAt),
    peakMiB: residentMemory(agent.workerPid).peakMiB,
    restMiB,
    groups,
    eventLoop: await recordedIn(scratch.dir),
  }
}

/** When the container wrote its line, in ms since the epoch. Rejects with what it said if that is not to come. */
async function whenReady(logPath: string): Promise<number> {
  const deadline = Date.now() + DEADLINE_MS
  for (;;) {
    const said = readFileSync(logPath, 'utf8')
    // "2026-01-02T03:04:05.678901234Z stdout F ready": the log format of CRI.
    const [, stamp] = /^(\S+) stdout F ready$/m.exec(said) ?? []
    if (stamp !== undefined) return Date.parse(stamp)
    if (Date.now() > deadline) throw new Error(`a container is not ready:\n${said}`)
    await setTimeout(LOOK_MS)
  }
}

/** Busybox, and files that are read in turn before the container is ready. */
async function serviceImage(dir: string, seed: number): Promise<OciLayout> {
  const random = seeded(9000 + seed)
  const files = Array.from({ length: FILES }, (_, at) => ({
    name: `files/${at}`,
    content: randomContent(random, FILE_BYTES),
  }))
  const read = files.filter((_, at) => at % READ_EVERY === 0).map(({ name }) => `/${name}`)
  const pack = (...parts: readonly TarPart[]): ReturnType<typeof packLayer> =>
    packLayer(Readable.from([makeTar(...parts)]), 'gzip', join(dir, 'layers'))
  const layers = [
    await pack(...busyboxFiles('cat', 'echo', 'sh', 'sleep')),
    await pack({ name: 'files/', typeflag: '5', mode: 0o755 }, ...files, {
      name: 'start',
      content: `for file in ${read.join(' ')}; do cat $file >/dev/null || exit; done; echo ready; exec sleep 3600\n`,
    }),
  ]
  return writeOciLayout(join(dir, 'layout'), { layers, process: { Env: ['PATH=/bin'] } })
}

/** What has the data worker of an agent record its event loop into a folder, from `beginRecording` on. */
function recording(folder: string): Record<string, string> {
  const recorder = join(folder, 'event-loop-recorder.mjs')
  // Types would be stripped in the worker, and in each of its threads, which takes 15 MiB each time.
  const source = readFileSync(join(import.meta.dirname, 'event-loop-recorder.ts'), 'utf8')
  writeFileSync(recorder, stripTypeScriptTypes(source))
  return { NODE_OPTIONS: `--import=${recorder}`, IPDR_EVENT_LOOP_DIR: folder }
}

async function beginRecording(folder: string): Promise<void> {
  writeFileSync(join(folder, 'begin'), '')
  while (!existsSync(join(folder, 'event-loop.json'))) await setTimeout(LOOK_MS)
}

/** What was recorded, all that happened until now. */
async function recordedIn(folder: string): Promise<EventLoopRecord> {
  // It is written once a second.
  await setTimeout(1500)
  return JSON.parse(readFileSync(join(folder, 'event-loop.json'), 'utf8')) as EventLoopRecord
}

/** "late by ≤ 2 ms 9000, ≤ 5 ms 12, …": how often in the worst run; and why, in all of them. */
function describeEventLoop(
  { counts, p50Ms, p99Ms }: EventLoopRecord,
  runs: readonly Starts[],
): string {
  const parts = counts.map(({ atMostMs, count }) =>
    atMostMs === null ? `more ${count}` : `≤ ${atMostMs} ms ${count}`,
  )
  const total = (cause: keyof EventLoopRecord['causes']): number =>
    runs.reduce((sum, { eventLoop }) => sum + eventLoop.causes[cause], 0)
  const why = `${total('work')} by its work, ${total('garbage')} by collections, ${total('blocked')} by waiting, ${total('processor')} had no processor`
  return `late by ${parts.join(', ')}; p50 ${p50Ms.toFixed(1)}, p99 ${p99Ms.toFixed(1)} ms; later than 20 ms in all runs: ${why}`
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`
}
