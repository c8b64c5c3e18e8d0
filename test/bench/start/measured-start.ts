import { writeFileSync } from 'node:fs'
import { runCommand } from '../../support/run-command.ts'
import { Scratch } from '../../support/scratch.ts'
import type { Arm } from './arm.ts'
import type { LinkProfile } from './link/link-profile.ts'
import { UNSHAPED } from './link/link-profile.ts'
import type { LinkCount } from './link/shaper.ts'
import { startNode } from './node.ts'
import { cpuSeconds, peakMemoryBytes } from './process-cost.ts'
import type { Site } from './site.ts'
import { startUntilReady, type TimedStart } from './timed-start.ts'
import type { Workload } from './workloads.ts'

/** One start, and what it cost until the container was ready. */
export type MeasuredStart = TimedStart & {
  /** On the wire, to the node and from it. */
  readonly downBytes: number
  readonly upBytes: number
  readonly connections: number
  readonly requests: number
  /** Of containerd, its shims, the snapshotter and the container. */
  readonly cpuSeconds: number
  /** Of the same without the container. */
  readonly peakMemoryBytes: number
  /** What the arm alone can tell. */
  readonly counters: Readonly<Record<string, number>>
  /** The requests one by one, when they were sent and for what. */
  readonly trace: LinkCount['requests']
}

/** Twenty minutes for one start: 300 MB at 20 Mbit/s take two, on a machine at a load of 10. */
const DEADLINE_MS = 1_200_000

/** Starts the workload on a node that has nothing of it: empty folders, dropped caches, daemons just started. */
export async function measuredStart(
  { arm, workload, image }: { arm: Arm; workload: Workload; image: string },
  link: LinkProfile,
  site: Site,
): Promise<MeasuredStart> {
  await using scratch = Scratch.open('bench-start')
  await site.link.shape(UNSHAPED)
  await using node = await arm.openNode(scratch, site)
  await using started = await startNode(scratch, node)
  const { cri } = started
  const pod = await cri.runPodSandbox()
  try {
    await runCommand('sync', [])
    writeFileSync('/proc/sys/vm/drop_caches', '3')
    await site.link.shape(link)
    await site.link.reset()
    const before = cpuSeconds(allOf(scratch))
    const { command, ready } = workload
    const signal = AbortSignal.timeout(DEADLINE_MS)
    const timed = await startUntilReady(cri, { pod, image, command, ready }, signal)
    const after = cpuSeconds(allOf(scratch))
    const count = await site.link.count()
    return {
      ...timed,
      downBytes: count.down.bytes,
      upBytes: count.up.bytes,
      connections: count.connections,
      requests: count.requests.length,
      cpuSeconds: after - before,
      peakMemoryBytes: peakMemoryBytes(scratch.pids().daemons),
      counters: (await node.counters?.()) ?? {},
      trace: count.requests,
    }
  } finally {
    // What is still being fetched need not be waited for; the pod ends with its containerd.
    await site.link.shape(UNSHAPED)
  }
}

function allOf(scratch: Scratch): number[] {
  const { daemons, containers } = scratch.pids()
  return [...daemons, ...containers]
}
