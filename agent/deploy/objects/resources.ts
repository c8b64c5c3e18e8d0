import type { V1ResourceRequirements } from '@kubernetes/client-node'
import type { ContainerSpec, PodSpec } from '../pod-spec.ts'

/** What a container may write beside its volumes, logs among it. 1 GiB: who needs more has volumes; without a bound it fills the node's disk. */
const WRITTEN_BYTES_MAX = 1024 ** 3

type Amounts = Record<string, string>

/** What a container gets: what is paid for is reserved, and is the most. */
export function containerResources(
  { containers, volumes }: PodSpec,
  container: ContainerSpec,
): V1ResourceRequirements {
  const paid: Amounts = {
    cpu: `${container.cpuMillis}m`,
    memory: String(container.memoryBytes),
    ...Object.fromEntries(sorted(container.devices).map(([name, count]) => [name, String(count)])),
  }
  // Scratch volumes count against the sum of all containers' bounds, so it does not matter whose they are.
  const scratchBytes =
    container === containers[0]
      ? volumes.reduce((sum, volume) => sum + (volume.kind === 'scratch' ? volume.bytes : 0), 0)
      : 0
  return {
    requests: { ...paid, 'ephemeral-storage': String(scratchBytes) },
    limits: { ...paid, 'ephemeral-storage': String(scratchBytes + WRITTEN_BYTES_MAX) },
  }
}

/** What all containers of one replica get together. */
export function replicaResources({ containers }: PodSpec): Amounts {
  const devices = new Map<string, number>()
  for (const [name, count] of containers.flatMap((container) => [...container.devices])) {
    devices.set(name, (devices.get(name) ?? 0) + count)
  }
  const sumOf = (amount: (container: ContainerSpec) => number): number =>
    containers.reduce((sum, container) => sum + amount(container), 0)
  return {
    cpu: `${sumOf(({ cpuMillis }) => cpuMillis)}m`,
    memory: String(sumOf(({ memoryBytes }) => memoryBytes)),
    ...Object.fromEntries(sorted(devices).map(([name, count]) => [name, String(count)])),
  }
}

/** Entries by their names: maps of messages come in any order. */
export function sorted<T>(map: ReadonlyMap<string, T>): (readonly [string, T])[] {
  return [...map].toSorted(([a], [b]) => (a < b ? -1 : 1))
}
