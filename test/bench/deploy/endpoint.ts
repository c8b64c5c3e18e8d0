import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { connectNodeAdapter } from '@connectrpc/connect-node'
import { Capacity } from '../../../agent/deploy/capacity.ts'
import type { Cluster } from '../../../agent/deploy/cluster.ts'
import { type DeployConfig, deployConfigSchema } from '../../../agent/deploy/deploy-config.ts'
import { DeployEndpoint } from '../../../agent/deploy/deploy-endpoint.ts'
import { KubeCluster } from '../../../agent/deploy/kube-cluster.ts'
import { ChannelFunds } from '../../../agent/payments/channel-funds.ts'
import { PaymentChannels } from '../../../agent/payments/payment-channels.ts'
import { DeployService } from '../../../proto/messages/ipdr/deploy_pb.js'
import { MemoryCluster } from '../../support/memory-cluster.ts'
import { silentLog } from '../../support/silent-log.ts'
import { ClusterRecorder, type RecordedChange } from './cluster-recorder.ts'
import { answerQuestions, task } from './own-process.ts'

/** A deploy endpoint in a process of its own, which tells how long it waited for whom. */
export type EndpointTask = {
  /** `http`: the bare service instead, on a port of loopback. */
  readonly over: 'libp2p' | 'http'
  /** For what it has to remember. */
  readonly dir: string
  /** Undefined: a cluster in memory. */
  readonly kubeconfig?: string
  /** The part of the configuration. */
  readonly deploy: object
}

/** Where it is: multiaddrs, or a URL. */
export type EndpointReady = { readonly addresses: readonly string[] }

/** What happened since it was asked last. */
export type EndpointRecord = {
  readonly changes: readonly RecordedChange[]
  /** How long each read of the chain took, by pod ID, in ms. */
  readonly chainMs: ReadonlyMap<string, number>
}

const { over, dir, kubeconfig, deploy } = task() as EndpointTask
const config = deployConfigSchema.parse(deploy)
const kube =
  kubeconfig === undefined ? undefined : new ClusterRecorder(KubeCluster.open({ kubeconfig }))
const cluster: Cluster = kube?.cluster ?? new MemoryCluster()
let chainMs = new Map<string, number>()

const addresses =
  over === 'libp2p' ? await listen(config, cluster) : await listenBare(config, cluster)

answerQuestions({ addresses } satisfies EndpointReady, async () => {
  const record: EndpointRecord = { changes: kube?.take() ?? [], chainMs }
  chainMs = new Map()
  return record
})

async function listen(config: DeployConfig, cluster: Cluster): Promise<string[]> {
  const channels = new PaymentChannels(
    { rpcUrls: config.chain.rpc, evmChainId: config.chain.id, timeoutMs: 10_000 },
    { log: silentLog },
  )
  const funds = new ChannelFunds(config, { channels, log: silentLog })
  const endpoint = await DeployEndpoint.listen(config, dir, {
    cluster,
    funds: {
      async secondsOf(channel, ...rest) {
        const startedAt = performance.now()
        const seconds = await funds.secondsOf(channel, ...rest)
        chainMs.set(channel.podId, performance.now() - startedAt)
        return seconds
      },
    },
    blocks: { get: () => Promise.reject(new Error('no blocks here')) },
    log: silentLog,
  })
  return endpoint.multiaddrs
}

async function listenBare(config: DeployConfig, cluster: Cluster): Promise<string[]> {
  const capacity = new Capacity(config, { peerId: 'none', cluster })
  const answer = connectNodeAdapter({
    acceptCompression: [],
    grpc: false,
    grpcWeb: false,
    routes: (router) => {
      router.service(DeployService, { capacity: async () => await capacity.ask() })
    },
  })
  const server = createServer(answer).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return [`http://127.0.0.1:${(server.address() as AddressInfo).port}`]
}
