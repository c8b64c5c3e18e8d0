import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import { request } from 'undici'
import { BlockError } from '../../../snapshotter/errors.ts'
import { connectOptions, readClusterTls } from '../../cluster/cluster-tls.ts'
import type { Config } from '../../config.ts'
import { GatewayClient } from '../../ipfs/gateway-client.ts'
import { type Check, type Finding, failure, notChecked, ok, warning } from './finding.ts'
import { reasonOf } from './reason-of.ts'

/** The raw block of no bytes: every gateway answers for it at once, whether it has it or not. */
const EMPTY_BLOCK = CID.parse('bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku')

/** As long as the agent gives them. */
const CLUSTER_CONNECT_MS = 5_000

/** Where blocks come from, each by name, and the agents of other nodes. */
export function sourceChecks(config: Config): readonly Check[] {
  const { gateways, peers, bitswap, listen } = config.ipfs
  const dialled = bitswap ? peers : []
  const others = config.cluster.blocks.share ? config.cluster.peers : []
  const named = [...gateways, ...dialled, ...others]
  const sources: Check = {
    name: 'sources',
    look: async () =>
      named.length > 0
        ? ok(`blocks come from ${named.join(', ')}`)
        : listen.length > 0
          ? warning(
              'the agent has no gateway and no peer: blocks come only from those who dial it',
              'Set ipfs.gateways or ipfs.peers.',
            )
          : failure(
              'the agent has no gateway and no peer, so no image can be read',
              'Set ipfs.gateways or ipfs.peers.',
            ),
  }
  return [
    sources,
    ...gateways.map((url): Check => ({ name: 'gateway', look: (signal) => gateway(url, signal) })),
    ...(dialled.length > 0
      ? [{ name: 'peers', look: (signal: AbortSignal) => dialAll(dialled, signal) }]
      : []),
    ...config.cluster.peers.map(
      (url): Check => ({
        name: 'cluster peer',
        look: (signal) => clusterPeer(config, url, signal),
      }),
    ),
  ]
}

async function gateway(url: string, signal: AbortSignal): Promise<Finding> {
  await using client = new GatewayClient(url)
  const started = performance.now()
  try {
    await client.get(EMPTY_BLOCK, signal)
  } catch (error) {
    // Its answer is that it does not have the block, so it answers.
    if (!(error instanceof BlockError) || error.code !== 'NOT_FOUND') {
      const why =
        error instanceof BlockError && error.code !== 'UNAVAILABLE' && error.code !== 'DATA_LOSS'
          ? `gateway ${url} does not answer in time`
          : reasonOf(error)
      return failure(
        why,
        'Check its address (ipfs.gateways) and whether this node may reach it: curl it.',
      )
    }
  }
  return ok(`${url} answers in ${Math.round(performance.now() - started)} ms`)
}

/** Dials each under an identity of its own, which lasts as long. */
async function dialAll(peers: readonly string[], signal: AbortSignal): Promise<Finding> {
  const { HeliaNode } = await import('../../ipfs/helia-node.ts')
  await using opened = new AsyncDisposableStack()
  const dir = await mkdtemp(join(tmpdir(), 'ipdr-doctor-'))
  opened.defer(() => rm(dir, { recursive: true }))
  const silent = (): void => undefined
  const log = { debug: silent, info: silent, warn: silent, error: silent }
  const places = { keyPath: join(dir, 'key'), listen: [], peers: [] }
  const { libp2p } = opened.use(await HeliaNode.start(places, { log }))
  const dialled = await Promise.allSettled(
    peers.map((peer) => libp2p.dial(multiaddr(peer), { signal })),
  )
  const failed = dialled.flatMap((result, index) =>
    result.status === 'rejected' ? `${peers[index]} (${reasonOf(result.reason)})` : [],
  )
  if (failed.length === 0) return ok(`${peers.length} of ${peers.length} can be dialled`)
  const found = `${failed.length} of ${peers.length} cannot be dialled: ${failed.join(', ')}`
  const advice =
    'Check their addresses and peer IDs (ipfs.peers), and whether this node may reach them.'
  return failed.length < peers.length ? warning(found, advice) : failure(found, advice)
}

async function clusterPeer(config: Config, url: string, signal: AbortSignal): Promise<Finding> {
  const files = config.cluster.tls
  if (files === undefined) return notChecked('cluster.tls is not set')
  const { Agent } = await import('undici')
  const connect = connectOptions(await readClusterTls(files), CLUSTER_CONNECT_MS)
  const dispatcher = new Agent({ connect })
  try {
    const { body } = await request(url, { dispatcher, signal })
    await body.dump()
    return ok(`${url} knows this node, and this node it`)
  } catch (error) {
    signal.throwIfAborted()
    // Pods do not wait for it: what it does for this node, others or the origin do.
    return warning(
      `${url} cannot be asked: ${reasonOf(error)}`,
      'Start its agent, or take it out of cluster.peers; both certificates must be signed by the same cluster.tls.caFile.',
    )
  } finally {
    await dispatcher.destroy()
  }
}
