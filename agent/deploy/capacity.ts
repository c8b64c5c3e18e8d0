import { create } from '@bufbuild/protobuf'
import type { V1Node, V1Pod } from '@kubernetes/client-node'
import { quantityToScalar } from '@kubernetes/client-node/dist/util.js'
import { hexToBytes } from 'viem'
import {
  type CapacityResponse,
  CapacityResponseSchema,
} from '../../proto/messages/ipdr/deploy_pb.js'
import { type Cluster, NODE, POD } from './cluster.ts'
import type { DeployConfig } from './deploy-config.ts'

/** How long an answer is used again, in ms: whoever asks needs no signature, and all nodes and pods have to be read for it. */
const KEPT_MS = 30_000

/** What the cluster has free, and what it costs. */
export class Capacity {
  readonly #config: DeployConfig
  readonly #peerId: string
  readonly #cluster: Cluster
  #kept: { readonly untilMs: number; readonly answer: Promise<CapacityResponse> } | undefined

  constructor(
    config: DeployConfig,
    { peerId, cluster }: { readonly peerId: string; readonly cluster: Cluster },
  ) {
    this.#config = config
    this.#peerId = peerId
    this.#cluster = cluster
  }

  /** At most as old as KEPT_MS. Rejects with ClusterError. */
  async ask(): Promise<CapacityResponse> {
    const now = performance.now()
    if (this.#kept === undefined || this.#kept.untilMs < now) {
      const answer = this.#count()
      this.#kept = { untilMs: now + KEPT_MS, answer }
      // A failure is nothing to be used again.
      answer.catch(() => {
        if (this.#kept?.answer === answer) this.#kept = undefined
      })
    }
    return await this.#kept.answer
  }

  async #count(): Promise<CapacityResponse> {
    const [nodes, pods] = await Promise.all([
      this.#cluster.list<V1Node>(NODE, {}),
      this.#cluster.list<V1Pod>(POD, {}),
    ])
    const open = nodes.filter(({ spec }) => spec?.unschedulable !== true)
    const names = new Set(open.map(({ metadata }) => metadata?.name))
    const running = pods.filter(
      ({ spec, status }) =>
        names.has(spec?.nodeName) && status?.phase !== 'Succeeded' && status?.phase !== 'Failed',
    )
    const free = (resource: string, scale: number): bigint => {
      const all = open.reduce((sum, { status }) => sum + amount(status?.allocatable?.[resource]), 0)
      const used = running
        .flatMap(({ spec }) => spec?.containers ?? [])
        .reduce((sum, { resources }) => sum + amount(resources?.requests?.[resource]), 0)
      return BigInt(Math.max(0, Math.floor((all - used) * scale)))
    }
    const { operator, chain, offers, runtimeClasses, hostSuffixes } = this.#config
    return create(CapacityResponseSchema, {
      operator: hexToBytes(operator),
      agent: this.#peerId,
      evmChainId: chain.id,
      offers: offers.map(({ contract, token, prices, unlockSecondsMin }) => ({
        contract: hexToBytes(contract),
        token: hexToBytes(token),
        unlockSecondsMin: BigInt(unlockSecondsMin),
        prices: [...prices].map(([resource, price]) => ({
          resource,
          perUnitGigasecond: String(price),
        })),
      })),
      cpuMillisFree: free('cpu', 1_000),
      memoryBytesFree: free('memory', 1),
      runtimeClasses: [...runtimeClasses],
      hostSuffixes: [...hostSuffixes],
    })
  }
}

function amount(quantity: string | undefined): number {
  return quantity === undefined ? 0 : Number(quantityToScalar(quantity))
}
