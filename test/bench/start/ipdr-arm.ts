import { fetchedBytes, totalBytes } from '../../demo/fetched-bytes.ts'
import { AgentProcess } from '../../support/agent.ts'
import type { Scratch } from '../../support/scratch.ts'
import type { Arm, ArmNode } from './arm.ts'
import type { Site } from './site.ts'

/** Our agent, with an image as `ipdr push` publishes it. */
export const ipdr: Arm = {
  name: 'ipdr',
  title: 'ipdr',
  isWhole: false,
  publish: async ({ published }) => published.reference,
  openNode,
}

/** The same with the list that `ipdr optimize` adds to the image. */
export const ipdrListed: Arm = {
  name: 'ipdr-list',
  title: 'ipdr, prefetch list',
  isWhole: false,
  publish: async ({ listed }) => listed.reference,
  openNode,
}

/** The same pushed again with that list, so that what a start reads lies apart from the rest. */
export const ipdrOptimised: Arm = {
  name: 'ipdr-optimised',
  title: 'ipdr, optimised image',
  isWhole: false,
  publish: async ({ optimised }) => optimised.reference,
  openNode,
}

/** Longer than an agent takes to answer on a busy machine, in ms. */
const STATUS_MS = 60_000

async function openNode(scratch: Scratch, { publisher }: Site): Promise<ArmNode> {
  const agent = await AgentProcess.start(scratch, { gateways: [publisher.gatewayUrl] })
  return {
    snapshotter: { name: 'ipdr', socketPath: agent.snapshotterSocket },
    hosts: { 'ipdr.internal': agent.registryUrl },
    counters: async () => {
      using admin = agent.admin()
      const status = await admin.calls.Status({}, { signal: AbortSignal.timeout(STATUS_MS) })
      const metrics = await agent.metrics()
      return {
        fetchedBytes: totalBytes(await fetchedBytes(agent)),
        prefetchedBytes: metrics.get('ipdr_prefetched_bytes_total') ?? 0,
        prefetchedUsedBytes: metrics.get('ipdr_prefetched_used_bytes_total') ?? 0,
        readsThatWaited: Number(status.missesTotal),
        waitP50Ms: status.missP50Ms,
        waitP99Ms: status.missP99Ms,
      }
    },
    [Symbol.asyncDispose]: () => agent[Symbol.asyncDispose](),
  }
}
