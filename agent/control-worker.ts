import { once } from 'node:events'
import { setInterval } from 'node:timers/promises'
import { CodedError } from '../snapshotter/errors.ts'
import type { Config } from './config.ts'
import { DeployEndpoint } from './deploy/deploy-endpoint.ts'
import { DeployMetrics } from './deploy/deploy-metrics.ts'
import { KubeCluster } from './deploy/kube-cluster.ts'
import { ScaleDown } from './deploy/scale-down.ts'
import { SCALE_DOWN_LIMITS, scaleDownRoutes } from './deploy/scale-down-routes.ts'
import { HttpServer } from './http-server.ts'
import { BlockSources } from './ipfs/block-sources.ts'
import { GatewayClient } from './ipfs/gateway-client.ts'
import type { Logger } from './logger.ts'
import { monitoringRoutes } from './monitoring.ts'
import { NodeImages } from './node-images.ts'
import { ChannelFunds } from './payments/channel-funds.ts'
import { PaymentChannels } from './payments/payment-channels.ts'
import { keepTellingOfLife, tellSupervisor } from './worker-message.ts'

/** One request to one RPC endpoint, in ms: four of them fit into the minute that a client waits. */
const RPC_MS_MAX = 10_000

/** How often deployments that broke off are looked for, in ms: those of another agent that is gone, or of an API that was away. */
const RESUME_MS = 60_000

/** Runs the control plane until `stop` aborts, then releases everything in reverse order. Rejects if a part cannot start. */
export async function runControlWorker(
  config: Config,
  stop: AbortSignal,
  log: Logger,
): Promise<void> {
  const { deploy } = config
  if (deploy === undefined) {
    throw new CodedError(
      'FAILED_PRECONDITION',
      'deploy: is missing in the configuration, so there is nothing to run',
    )
  }
  await using opened = new AsyncDisposableStack()
  const gateways = config.ipfs.gateways.map((url) => opened.use(new GatewayClient(url)))
  const blocks = new BlockSources(gateways, { log: log.child({ part: 'ipfs' }) })
  const cluster = KubeCluster.open(deploy)
  const payments = log.child({ part: 'payments' })
  const channels = new PaymentChannels(
    { rpcUrls: deploy.chain.rpc, evmChainId: deploy.chain.id, timeoutMs: RPC_MS_MAX },
    { log: payments },
  )
  const metrics = new DeployMetrics()
  const endpoint = opened.use(
    await DeployEndpoint.listen(deploy, `${config.root}/deploy`, {
      cluster,
      funds: new ChannelFunds(deploy, { channels, log: payments }),
      blocks,
      images: opened.use(new NodeImages(config.admin.socketPath)),
      log: log.child({ part: 'deploy' }),
      onCall: (end) => metrics.called(end),
    }),
  )
  metrics.observe({
    connections: () => endpoint.load.connections,
    streams: () => endpoint.load.streams,
    changes: () => endpoint.load.changes,
  })
  if (deploy.scaleDown !== undefined) {
    const part = log.child({ part: 'scale-down' })
    const specOf = endpoint.deployments.specOf.bind(endpoint.deployments)
    const routes = scaleDownRoutes({
      scaleDown: new ScaleDown(deploy, { cluster, specOf, log: part }),
      onAnswer: (status) => metrics.scaledDown(status),
      log: part,
    })
    const server = opened.use(
      await HttpServer.listen(deploy.scaleDown.listen, routes, { limits: SCALE_DOWN_LIMITS }),
    )
    part.info({ address: server.address, url: deploy.scaleDown.url }, 'pods can ask to sleep')
  }
  const readiness = (): string | undefined => (stop.aborted ? 'stopping' : undefined)
  const monitoring = opened.use(
    await HttpServer.listen(deploy.monitoring.listen, monitoringRoutes({ metrics, readiness })),
  )
  tellSupervisor({ kind: 'ready' })
  opened.use(keepTellingOfLife())
  log.info(
    { addresses: endpoint.multiaddrs, monitoring: monitoring.address },
    'publishers can deploy',
  )
  void resumeNowAndThen(endpoint, stop, log)
  if (!stop.aborted) await once(stop, 'abort')
  log.info({}, 'stopping')
}

async function resumeNowAndThen(
  endpoint: DeployEndpoint,
  stop: AbortSignal,
  log: Logger,
): Promise<void> {
  const resume = async (): Promise<void> => {
    try {
      const resumed = await endpoint.deployments.resume()
      if (resumed > 0) log.info({ resumed }, `${resumed} deployments that had broken off are done`)
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      log.warn({ reason }, `deployments that broke off cannot be looked for: ${reason}`)
    }
  }
  await resume()
  try {
    for await (const _ of setInterval(RESUME_MS, undefined, { signal: stop })) await resume()
  } catch {
    // Stopped.
  }
}
