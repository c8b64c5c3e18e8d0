import { join } from 'node:path'
import type { Hex } from 'viem'
import type { DeployEndpoint } from '../../agent/deploy/deploy-endpoint.ts'
import { TestChain } from './chain/test-chain.ts'
import { listenForDeploys } from './listen-for-deploys.ts'
import { MemoryCluster } from './memory-cluster.ts'
import { Scratch } from './scratch.ts'

/** A deploy endpoint over a real chain and a cluster in memory, for those who call it. */
export class DeployAgent implements AsyncDisposable {
  readonly chain: TestChain
  readonly cluster: MemoryCluster
  readonly endpoint: DeployEndpoint
  readonly #opened: AsyncDisposableStack
  #pods = 0

  private constructor(
    parts: Pick<DeployAgent, 'chain' | 'cluster' | 'endpoint'>,
    opened: AsyncDisposableStack,
  ) {
    this.chain = parts.chain
    this.cluster = parts.cluster
    this.endpoint = parts.endpoint
    this.#opened = opened
  }

  /** `name` shows up in paths; `changes` are fields of the configuration. */
  static async start(name: string, changes: object = {}): Promise<DeployAgent> {
    await using opened = new AsyncDisposableStack()
    const scratch = opened.use(Scratch.open(name))
    const chain = opened.use(await TestChain.start(scratch))
    const cluster = new MemoryCluster()
    const dir = join(scratch.dir, 'agent')
    const endpoint = opened.use(await listenForDeploys({ chain, cluster, dir }, changes))
    return new DeployAgent({ chain, cluster, endpoint }, opened.move())
  }

  /** A channel for this pod, or one of its own, with an hour of a core. */
  async fund(podId?: Hex, amount = 3_600_000n): Promise<Hex> {
    const id: Hex = podId ?? `0x${(++this.#pods).toString(16).padStart(64, '0')}`
    await this.chain.createChannel(id, { unlockSeconds: 300n, amount })
    return id
  }

  /** Has every Deployment be as its controller would once all replicas run, from now on. */
  becomesReady(): void {
    this.cluster.after = (_call, words) => {
      const name = /^apply Deployment (\S+)$/.exec(words)?.[1]
      if (name === undefined) return
      this.cluster.set('Deployment', name, (object) => {
        const { replicas } = object['spec'] as { replicas: number }
        object['status'] = { replicas, readyReplicas: replicas, updatedReplicas: replicas }
      })
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}
