import { isIP } from 'node:net'
import { networkInterfaces } from 'node:os'
import type { Config } from '../config.ts'
import type { ListenAddress } from '../listen-address.ts'

/** The nodes of a cluster, as every one of them calls them: scheme, host and port. */
export type ClusterNames = {
  /** This node; undefined: it serves nobody, or does not know by which address. */
  readonly self: string | undefined
  readonly others: readonly string[]
}

/** Finds this node among `peers`, so that one list does for all nodes. `local` are the IP addresses of this machine. */
export function clusterNames(
  { listen, peers, address }: Pick<Config['cluster'], 'listen' | 'peers' | 'address'>,
  local: readonly string[] = localAddresses(),
): ClusterNames {
  const named = [...new Set(peers.map((url) => new URL(url).origin))]
  const self =
    listen === undefined
      ? undefined
      : address === undefined
        ? (named.find((peer) => isOwn(peer, listen, local)) ?? nameOf(listen))
        : new URL(address).origin
  return { self, others: named.filter((peer) => peer !== self) }
}

function isOwn(peer: string, { port }: ListenAddress, local: readonly string[]): boolean {
  const url = new URL(peer)
  return Number(url.port || 443) === port && local.includes(url.hostname.replace(/^\[|\]$/g, ''))
}

/** Undefined for all addresses of this machine, which is none that others can call. */
function nameOf({ host, port }: ListenAddress): string | undefined {
  if (host === '0.0.0.0' || host === '::') return undefined
  return new URL(`https://${isIP(host) === 6 ? `[${host}]` : host}:${port}`).origin
}

function localAddresses(): string[] {
  return Object.values(networkInterfaces()).flatMap((each) =>
    (each ?? []).map(({ address }) => address),
  )
}
