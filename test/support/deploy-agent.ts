import { join } from 'node:path'
import type { Hex } from 'viem'
import { type DeployConfig, deployConfigSchema } from '../../agent/deploy/deploy-config.ts'
import { DeployEndpoint } from '../../agent/deploy/deploy-endpoint.ts'
import { ChannelFunds } from '../../agent/payments/channel-funds.ts'
import { PaymentChannels } from '../../agent/payments/payment-channels.ts'
import { TestChain } from './chain/test-chain.ts'
import { MemoryCluster } from './memory-cluster.ts'
import { Scratch } from './scratch.ts'

const silent = { debug() {}, info() {}, warn() {}, error() {} }

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
    const config: DeployConfig = deployConfigSchema.parse({
      listen: ['/ip4/127.0.0.1/tcp/0'],
      operator: chain.operator,
      chain: { id: Number(chain.evmChainId), rpc: [chain.rpcUrl] },
      // 1,000 units a second for a core.
      offers: [{ contract: chain.contract, token: chain.token, prices: { cpu: '1000000000000' } }],
      ...changes,
    })
    const channels = new PaymentChannels(
      { rpcUrls: config.chain.rpc, evmChainId: config.chain.id, timeoutMs: 2_000 },
      { log: silent },
    )
    const endpoint = opened.use(
      await DeployEndpoint.listen(config, join(scratch.dir, 'agent'), {
        cluster,
        funds: new ChannelFunds(config, { channels, log: silent }),
        blocks: { get: () => Promise.reject(new Error('no blocks here')) },
        log: silent,
      }),
    )
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
