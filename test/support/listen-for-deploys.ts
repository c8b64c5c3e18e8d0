import type { Cluster } from '../../agent/deploy/cluster.ts'
import { deployConfigSchema } from '../../agent/deploy/deploy-config.ts'
import { DeployEndpoint } from '../../agent/deploy/deploy-endpoint.ts'
import type { Images } from '../../agent/deploy/deploy-service.ts'
import { ChannelFunds } from '../../agent/payments/channel-funds.ts'
import { PaymentChannels } from '../../agent/payments/payment-channels.ts'
import type { TestChain } from './chain/test-chain.ts'
import { silentLog } from './silent-log.ts'

/** A deploy endpoint on loopback over a real chain; a core costs 1,000 units a second there. `changes` are fields of the configuration. */
export async function listenForDeploys(
  {
    chain,
    cluster,
    dir,
    images,
  }: { chain: TestChain; cluster: Cluster; dir: string; images?: Images },
  changes: object = {},
): Promise<DeployEndpoint> {
  const config = deployConfigSchema.parse({
    listen: ['/ip4/127.0.0.1/tcp/0'],
    operator: chain.operator,
    chain: { id: Number(chain.evmChainId), rpc: [chain.rpcUrl] },
    offers: [{ contract: chain.contract, token: chain.token, prices: { cpu: '1000000000000' } }],
    ...changes,
  })
  const channels = new PaymentChannels(
    { rpcUrls: config.chain.rpc, evmChainId: config.chain.id, timeoutMs: 2_000 },
    { log: silentLog },
  )
  return await DeployEndpoint.listen(config, dir, {
    cluster,
    funds: new ChannelFunds(config, { channels, log: silentLog }),
    blocks: { get: () => Promise.reject(new Error('no blocks here')) },
    ...(images && { images }),
    log: silentLog,
  })
}
