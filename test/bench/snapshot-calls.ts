import { basename } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { connect } from '../../proto/client.ts'
import { snapshotsContract } from '../../proto/load.ts'
import type { Digest } from '../../snapshotter/oci/digest.ts'
import { layerChainIds } from '../../snapshotter/oci/layer-chain-id.ts'
import { failureOf } from '../support/failure-of.ts'
import type { OciLayout } from '../support/images/oci-layout.ts'
import { Scratch } from '../support/scratch.ts'
import { SnapshotsClient } from '../support/snapshots-client.ts'
import type { BenchContext, Measurement } from './bench-context.ts'
import { BenchNode } from './bench-node.ts'
import type { Figure } from './figure.ts'
import { median, quantile } from './rounds.ts'
import { writeLayeredSample } from './sample-layouts.ts'
import { residentMemory } from './start/process-cost.ts'

const IMAGES = 20
const LAYERS = 20

/** Calls of each kind that the median is taken from. */
const CALLS = 300

/** Snapshots of pods in user namespaces: each has mounts of its own. */
const SHIFTED_CALLS = 30
const SHIFTED = {
  'containerd.io/snapshot/uidmapping': '0:100000:65536',
  'containerd.io/snapshot/gidmapping': '0:100000:65536',
}

/** When memory is looked at, after the last mount, in ms. 30 s: V8 and malloc give back what a burst took some seconds later. */
const SETTLE_MS = 30_000

/** Images of 20 layers on one node: the time of their mounts, of calls on them, and the memory that they take. */
export const snapshotCalls: Measurement = {
  names: ['mount-20-layers', 'snapshotter-call', 'prepare-shifted', 'memory-20-images'],
  measure: measureCalls,
}

async function measureCalls({ publisher, say }: BenchContext): Promise<Figure[]> {
  await using scratch = Scratch.open('bench-layers')
  await using node = await BenchNode.start(publisher)
  using service = connect(snapshotsContract(), node.agent.snapshotterSocket)
  const client = new SnapshotsClient(service.calls)
  const startMiB = residentMemory(node.agent.workerPid).totalMiB
  const mountsMs: number[] = []
  let topmost = ''
  for (let number = 0; number < IMAGES; number++) {
    say(`mounting image ${number + 1} of ${IMAGES}, ${LAYERS} layers each`)
    const layout = await writeLayeredSample(`${scratch.dir}/${number}`, {
      layers: LAYERS,
      seed: number,
    })
    const { reference } = await publisher.push(layout)
    topmost = await claimImage({ node, client }, { root: basename(reference), layout })
    const started = performance.now()
    await client.prepare(`container-${number}`, topmost)
    mountsMs.push(performance.now() - started)
  }
  say('calling')
  const calls = {
    Stat: await callMs(() => client.stat(topmost)),
    Mounts: await callMs(() => client.mounts('container-0')),
    Prepare: await callMs((number) => client.prepare(`call-${number}`, topmost)),
  }
  const medians = Object.entries(calls).map(([name, ms]) => ({
    name,
    p50: median(ms),
    p99: quantile(ms, 0.99),
  }))
  say('letting the agent rest')
  await setTimeout(SETTLE_MS)
  const memory = residentMemory(node.agent.workerPid)
  say('mounting for user namespaces')
  const shiftedMs = await callMs(
    (number) => client.prepare(`shifted-${number}`, topmost, SHIFTED),
    SHIFTED_CALLS,
  )
  return [
    {
      name: 'mount-20-layers',
      value: median(mountsMs),
      unit: 'ms',
      limit: { atMost: 100 },
      detail: `median Prepare of the first container of ${IMAGES} images; slowest ${Math.max(...mountsMs).toFixed(0)} ms`,
    },
    {
      name: 'snapshotter-call',
      value: Math.max(...medians.map(({ p50 }) => p50)),
      unit: 'ms',
      limit: { atMost: 2 },
      detail: `medians: ${medians.map(({ name, p50, p99 }) => `${name} ${p50.toFixed(2)} ms (p99 ${p99.toFixed(1)})`).join(', ')}`,
    },
    {
      name: 'prepare-shifted',
      value: median(shiftedMs),
      unit: 'ms',
      detail: `for a pod in a user namespace: ${LAYERS} layers mounted with its owners; p99 ${quantile(shiftedMs, 0.99).toFixed(0)} ms`,
    },
    {
      name: 'memory-20-images',
      value: memory.totalMiB,
      unit: 'MiB',
      limit: { atMost: 200 },
      detail: `VmRSS of the data worker, at rest: ${memory.anonMiB.toFixed(0)} MiB its own, ${memory.fileMiB.toFixed(0)} MiB of program files; ${startMiB.toFixed(0)} MiB after its start, ${memory.peakMiB.toFixed(0)} MiB at most`,
    },
  ]
}

/** What containerd does with an image before its first container. Resolves to the topmost snapshot. */
async function claimImage(
  { node, client }: { node: BenchNode; client: SnapshotsClient },
  { root, layout }: { root: string; layout: OciLayout },
): Promise<string> {
  const manifest = await fetch(`${node.agent.registryUrl}/v2/${root}/manifests/latest`)
  if (!manifest.ok)
    throw new Error(`the registry answered ${manifest.status}: ${await manifest.text()}`)
  await manifest.bytes()
  let parent = ''
  for (const chainId of layerChainIds(layout.layers.map(({ diffId }) => diffId as Digest))) {
    // Answered ALREADY_EXISTS: the layer is claimed, nothing has to be downloaded.
    await failureOf(() =>
      client.prepare(`extract ${chainId}`, parent, { 'containerd.io/snapshot.ref': chainId }),
    )
    parent = chainId
  }
  return parent
}

async function callMs(
  call: (number: number) => Promise<unknown>,
  calls = CALLS,
): Promise<number[]> {
  const durations: number[] = []
  for (let number = 0; number < calls; number++) {
    const started = performance.now()
    await call(number)
    durations.push(performance.now() - started)
  }
  return durations
}
