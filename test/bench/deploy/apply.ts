import { join } from 'node:path'
import { CoreV1Api } from '@kubernetes/client-node'
import type { Hex } from 'viem'
import { namespaceOf } from '../../../agent/deploy/pod-namespace.ts'
import { TestChain } from '../../support/chain/test-chain.ts'
import { deployAccount } from '../../support/deploy-account.ts'
import { KubeApiServer } from '../../support/kube-apiserver.ts'
import { KubeControllers } from '../../support/kube-controllers.ts'
import { inTurn, median, quantile } from '../rounds.ts'
import { cpuSeconds } from '../start/process-cost.ts'
import type { ClusterCall, Stretch } from './cluster-recorder.ts'
import {
  type DeployContext,
  type DeployFigure,
  type DeployMeasurement,
  LISTEN,
  profileFlags,
  type Step,
} from './deploy-figure.ts'
import type { EndpointReady, EndpointRecord, EndpointTask } from './endpoint.ts'
import { OwnProcess } from './own-process.ts'
import type { DeployedPod, DeployQuestion, PublishersTask } from './publishers.ts'

/** Publishers at once, in the arm that has more than one. As many as have a turn at the same time (agent/deploy/pod-turns.ts). */
const PUBLISHERS = 16

/** Pods a round and arm. 32: each publisher has two, and five rounds have a 99th percentile of 160. */
const PODS = 32

/** What a pod's channel holds, in base units: an hour of a core, at the price below. */
const FUNDS = 3_600_000n

/** From a signed call to the `applied` that answers it: of pods that are new, and of the same ones changed. */
export const apply: DeployMeasurement = {
  name: 'apply',
  async measure(context) {
    const { rounds, say } = context
    await using site = await Site.open(context)
    const arms = [1, PUBLISHERS].map((atOnce) => ({ atOnce, fresh: new Arm(), changed: new Arm() }))
    // Connections, compiled code, and what the API has to tell of its kinds.
    await site.deploy({ podIds: await site.fund(PUBLISHERS), atOnce: PUBLISHERS, version: 1 })
    await inTurn(rounds, arms, async ({ atOnce, fresh, changed }, round) => {
      say(`round ${round + 1}: ${PODS} pods, ${atOnce} at once`)
      const podIds = await site.fund(PODS)
      fresh.add(await site.deploy({ podIds, atOnce, version: 1 }))
      changed.add(await site.deploy({ podIds, atOnce, version: 2 }))
      await site.freeAddresses(podIds)
    })
    const named = arms.flatMap(({ atOnce, fresh, changed }) => [
      { name: `apply-new-${atOnce}`, arm: fresh },
      { name: `apply-change-${atOnce}`, arm: changed },
    ])
    return {
      figures: named.flatMap(({ name, arm }) => arm.figures(name)),
      steps: named.flatMap(({ name, arm }) => arm.steps(name)),
    }
  },
}

/** One deployment, as its publisher and the endpoint saw it. */
type Sample = DeployedPod & {
  readonly chainMs: number
  readonly calls: readonly ClusterCall[]
  /** Of processors, in the endpoint's process: the mean of those that were deployed with it. */
  readonly cpuMs: number
}

/** A cluster, a chain, an endpoint and its publishers, each in processes of its own. */
class Site implements AsyncDisposable {
  readonly #server: KubeApiServer
  readonly #chain: TestChain
  readonly #endpoint: OwnProcess
  readonly #publishers: OwnProcess
  readonly #opened: AsyncDisposableStack
  #pods = 0

  private constructor(
    { server, chain }: { readonly server: KubeApiServer; readonly chain: TestChain },
    { endpoint, publishers }: { readonly endpoint: OwnProcess; readonly publishers: OwnProcess },
    opened: AsyncDisposableStack,
  ) {
    this.#server = server
    this.#chain = chain
    this.#endpoint = endpoint
    this.#publishers = publishers
    this.#opened = opened
  }

  static async open(context: DeployContext): Promise<Site> {
    const { scratch, say } = context
    await using opened = new AsyncDisposableStack()
    say('starting etcd, kube-apiserver, its controllers, and a chain')
    const server = opened.use(await KubeApiServer.start(scratch))
    opened.use(await KubeControllers.start(scratch, server))
    const chain = opened.use(await TestChain.start(scratch))
    const { contract, token, operator, rpcUrl, publisherKey: key } = chain
    const task: EndpointTask = {
      over: 'libp2p',
      dir: join(scratch.dir, 'endpoint'),
      kubeconfig: (await deployAccount(server)).kubeconfig,
      deploy: {
        ...LISTEN,
        operator,
        chain: { id: Number(chain.evmChainId), rpc: [rpcUrl] },
        offers: [{ contract, token, prices: { cpu: '1000000000000' } }],
      },
    }
    const { process: endpoint, ready } = await OwnProcess.start(
      scratch,
      'endpoint.ts',
      task,
      profileFlags(context),
    )
    opened.use(endpoint)
    const who: PublishersTask = {
      publishers: PUBLISHERS,
      addresses: (ready as EndpointReady).addresses,
      key,
    }
    const { process: publishers } = await OwnProcess.start(scratch, 'publishers.ts', who)
    opened.use(publishers)
    return new Site({ server, chain }, { endpoint, publishers }, opened.move())
  }

  /** Pod IDs with a channel each. */
  async fund(pods: number): Promise<Hex[]> {
    const podIds: Hex[] = []
    for (let n = 0; n < pods; n++) {
      const podId: Hex = `0x${(++this.#pods).toString(16).padStart(64, '0')}`
      await this.#chain.createChannel(podId, { unlockSeconds: 300n, amount: FUNDS })
      podIds.push(podId)
    }
    return podIds
  }

  async deploy(question: DeployQuestion): Promise<Sample[]> {
    const before = cpuSeconds([this.#endpoint.pid])
    const deployed = await this.#publishers.ask<readonly DeployedPod[]>(question)
    const cpuMs = ((cpuSeconds([this.#endpoint.pid]) - before) * 1_000) / deployed.length
    const { changes, chainMs } = await this.#endpoint.ask<EndpointRecord>({})
    return deployed.map((pod) => {
      const namespace = namespaceOf(this.#chain.publisher, pod.podId)
      const calls = changes.find((change) => change.namespace === namespace)?.calls ?? []
      return { ...pod, calls, cpuMs, chainMs: chainMs.get(pod.podId) ?? 0 }
    })
  }

  /** Deletes the services of these pods: the cluster has 254 addresses for them. */
  async freeAddresses(podIds: readonly Hex[]): Promise<void> {
    const core = this.#server.admin.makeApiClient(CoreV1Api)
    for (const podId of podIds) {
      const namespace = namespaceOf(this.#chain.publisher, podId)
      await core.deleteCollectionNamespacedService({ namespace })
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}

/** All deployments of one kind. */
class Arm {
  #samples: Sample[] = []

  add(samples: readonly Sample[]): void {
    this.#samples.push(...samples)
  }

  figures(name: string): DeployFigure[] {
    const samples = this.#samples
    const all = samples.map(({ appliedMs }) => appliedMs)
    const of = (value: (sample: Sample) => number): number => median(samples.map(value))
    const requests = of(({ calls }) => calls.flatMap((call) => call.requests).length)
    const sent = of(({ calls }) => covered(calls.flatMap((call) => call.requests)))
    const inCluster = ({ calls }: Sample): number => covered(calls.map(({ whole }) => whole))
    const asked = of(inCluster)
    const chain = of(({ chainMs }) => chainMs)
    const rest = of((sample) => sample.appliedMs - sample.chainMs - inCluster(sample))
    const before = of(({ acceptedMs, chainMs }) => acceptedMs - chainMs)
    return [
      {
        name: `${name}-p50`,
        value: quantile(all, 0.5),
        unit: 'ms',
        detail: `${samples.length} deployments; ${requests} requests to kube-apiserver`,
      },
      { name: `${name}-p99`, value: quantile(all, 0.99), unit: 'ms', detail: '' },
      {
        name: `${name}-api`,
        value: sent,
        unit: 'ms',
        detail: `in requests to kube-apiserver; ${asked.toFixed(0)} with what the client of Kubernetes does around them`,
      },
      {
        name: `${name}-rest`,
        value: rest,
        unit: 'ms',
        detail: `neither cluster nor chain: ${before.toFixed(1)} until it is accepted; the chain beside it ${chain.toFixed(1)}`,
      },
      {
        name: `${name}-cpu`,
        value: of(({ cpuMs }) => cpuMs),
        unit: 'ms',
        detail: "of processors, in the endpoint's process",
      },
    ]
  }

  /** What took longest first. */
  steps(figure: string): Step[] {
    const changes = this.#samples.length
    const calls = this.#samples.flatMap(({ calls }) => calls)
    return [...Map.groupBy(calls, ({ words }) => words)]
      .map(([words, calls]) => ({
        figure,
        words,
        callsOfEach: calls.length / changes,
        requestsOfEach: calls.flatMap(({ requests }) => requests).length / changes,
        callMs: median(calls.map(({ whole }) => lengthOf(whole))),
        requestMs: median(calls.map(({ requests }) => covered(requests))),
        ofEachMs: calls.reduce((sum, { whole }) => sum + lengthOf(whole), 0) / changes,
      }))
      .toSorted((a, b) => b.ofEachMs - a.ofEachMs)
  }
}

function lengthOf({ from, to }: Stretch): number {
  return to - from
}

/** How much time lies in any of them: some may lie side by side. */
function covered(stretches: readonly Stretch[]): number {
  let [sum, end] = [0, Number.NEGATIVE_INFINITY]
  for (const { from, to } of stretches.toSorted((a, b) => a.from - b.from)) {
    sum += Math.max(0, to - Math.max(from, end))
    end = Math.max(end, to)
  }
  return sum
}
