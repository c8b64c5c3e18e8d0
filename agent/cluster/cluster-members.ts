import { hostname } from 'node:os'
import type { Config } from '../config.ts'
import type { FoundNode } from './endpoint-slices.ts'
import { type ClusterNames, clusterNames } from './own-address.ts'
import { rankedName } from './rank-homes.ts'

/**
 * Nodes that give each other blocks; of the cells of a large cluster, the mean at most. 256: a node has connections to all of these, and they
 * to it, some 50 KB each, so 26 MB. Of 5,000 nodes there are then 32 cells, and a block leaves the origin 32 times.
 */
const CELL_NODES_MAX = 256

/**
 * This node and the others that it asks: those that are configured, and those of the found ones that are ready. This node is found among
 * them whether it is ready or not. A large cluster is divided into cells, alike on every node that knows the same names, and
 * the others are those of this node's cell. `local` are the IP addresses of this machine, by default all of them.
 */
export function clusterMembers(
  config: Pick<Config['cluster'], 'listen' | 'peers' | 'address'>,
  found: readonly FoundNode[],
  local?: readonly string[],
): ClusterNames {
  const peers = [...config.peers, ...found.map(({ url }) => url)]
  const { self, others } = clusterNames({ ...config, peers }, local)
  const unready = new Set(found.filter(({ isReady }) => !isReady).map(({ url }) => url))
  for (const peer of config.peers) unready.delete(new URL(peer).origin)
  return {
    self,
    others: cellOf(
      self,
      others.filter((url) => !unready.has(url)),
    ),
  }
}

/** Twice as many cells each time that one would be too large, so that every other time half of the others stay. */
function cellOf(self: string | undefined, others: readonly string[]): readonly string[] {
  const cells = 2 ** Math.max(0, Math.ceil(Math.log2((others.length + 1) / CELL_NODES_MAX)))
  if (cells === 1) return others
  const cell = (name: string): number => rankedName(name).seed[0] % cells
  // Whoever has no name belongs somewhere too.
  const own = cell(self ?? hostname())
  return others.filter((other) => cell(other) === own)
}
