import { once } from 'node:events'
import { setFlagsFromString } from 'node:v8'
import type { PublisherConfig } from '../ipfs/publisher-node.ts'
import { errorLog } from './error-log.ts'
import { EXIT_CODES } from './exit-codes.ts'
import { asUsageFailure, CommandFailure } from './failure.ts'
import { fields } from './table.ts'

/** Options of the commands that offer a repository to others. */
export const PUBLISHING_OPTIONS = {
  listen: {
    type: 'string',
    array: true,
    requiresArg: true,
    default: ['/ip4/0.0.0.0/tcp/4001'],
    describe: 'Multiaddr to listen on for bitswap; may be repeated',
    valueName: 'MULTIADDR',
  },
  gateway: {
    type: 'string',
    requiresArg: true,
    default: '127.0.0.1:8080',
    describe: 'Address of the HTTP gateway; port 0 lets the kernel choose',
    valueName: 'HOST:PORT',
  },
} as const

/** Where a running publisher can be reached. */
export type PublisherAddresses = {
  readonly repository: string
  readonly peerId: string
  /** What others put in `ipfs.peers`, or give to --peer. */
  readonly multiaddrs: readonly string[]
  /** What others put in `ipfs.gateways`, or give to --gateway. */
  readonly gateway: string
}

/** Offers the repository until `signal` aborts, which is no failure; `ready` is told once, when others can reach it. */
export async function publish(
  options: {
    readonly directory: string
    readonly listen: readonly string[]
    readonly gateway: string
  },
  ready: (addresses: PublisherAddresses) => void,
  signal: AbortSignal,
): Promise<void> {
  const { directory, listen } = options
  const gateway = parseHostAndPort(options.gateway)
  // Else V8 collects garbage for every few blocks that are read: a quarter more CPU for a block that is served.
  setFlagsFromString('--external-memory-accounted-in-global-limit')
  await using node = await openPublisher({ directory, listen, gateway })
  const { peerId, multiaddrs, gatewayUrl } = node
  ready({ repository: directory, peerId, multiaddrs, gateway: gatewayUrl })
  if (!signal.aborted) await once(signal, 'abort')
}

/** For people: where it is, and what to write into an agent's configuration. */
export function describeAddresses(addresses: PublisherAddresses): string {
  const places: [string, string][] = addresses.multiaddrs.map((address) => ['Peer', address])
  return fields([
    ['Serving', addresses.repository],
    ...places,
    ['Gateway', addresses.gateway],
    ['Stop', 'Ctrl-C'],
  ])
}

async function openPublisher(
  config: PublisherConfig,
): Promise<import('../ipfs/publisher-node.ts').PublisherNode> {
  const { PublisherNode } = await import('../ipfs/publisher-node.ts')
  try {
    return await PublisherNode.open(config, { log: errorLog(process.stderr) })
  } catch (error) {
    throw asUsageFailure(error)
  }
}

function parseHostAndPort(text: string): { host: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text)
  const host = match?.[1] ?? match?.[2]
  const port = Number(match?.[3])
  if (host !== undefined && port <= 65_535) return { host, port }
  throw new CommandFailure(
    EXIT_CODES.usage,
    `'${text}' is not an address`,
    'Write host and port: 127.0.0.1:8080 or [::1]:8080.',
  )
}
