import type { V1LimitRange, V1ResourceQuota } from '@kubernetes/client-node'
import type { PodIdentity, PodSpec } from '../pod-spec.ts'
import { metadataOf } from './object-names.ts'
import { replicaResources } from './resources.ts'

/** A cluster has 2,768 of them for everybody. 64: a change of a pod holds the old ones and the new ones for a moment. */
const NODE_PORTS_MAX = 64

/**
 * How many there may be of what costs something, whatever a controller does wrong. CPU and memory are bounded for each pod instead, by
 * `limitRange`: a quota of them would count the replicas that a change has yet to replace, and the overhead of a runtime class, so that a
 * pod that gets smaller could never be rolled out: its old replica, which stays until there is a new one, takes all of the new quota.
 */
export function resourceQuota(spec: PodSpec, identity: PodIdentity): V1ResourceQuota {
  const { max } = spec.scaling
  const disks = spec.volumes.filter((volume) => volume.kind === 'disk')
  const copies = ({ isShared }: { readonly isShared: boolean }): bigint =>
    spec.isStateful && !isShared ? BigInt(max) : 1n
  const claims = disks.reduce((sum, disk) => sum + copies(disk), 0n)
  const bytes = disks.reduce((sum, disk) => sum + copies(disk) * BigInt(disk.bytes), 0n)
  return {
    apiVersion: 'v1',
    kind: 'ResourceQuota',
    metadata: metadataOf(identity, 'tpod-quota'),
    spec: {
      hard: {
        // A rollout has one more than `max`, and each that goes counts until it has ended.
        pods: String(2 * max + 1),
        // Disks that a change leaves out stay where they are, and count on: there is room for as many again.
        persistentvolumeclaims: String(2n * claims),
        'requests.storage': String(2n * bytes),
        'services.nodeports': String(NODE_PORTS_MAX),
        'services.loadbalancers': '0',
      },
    },
  }
}

/** What one replica may get, at its making. */
export function limitRange(spec: PodSpec, identity: PodIdentity): V1LimitRange {
  return {
    apiVersion: 'v1',
    kind: 'LimitRange',
    metadata: metadataOf(identity, 'tpod-limits'),
    spec: { limits: [{ type: 'Pod', max: replicaResources(spec) }] },
  }
}
