import type { V1ObjectMeta } from '@kubernetes/client-node'
import { OURS } from '../cluster.ts'
import type { PodIdentity, PodSpec, PortSpec } from '../pod-spec.ts'

// Names that begin with tpod, and the selector, are those of Trusted Pods, and stay: both systems may be in one cluster. Names of a pod
// spec have 40 characters at most, so that all of these are good for a label.

/** On every replica; a selector can never be changed. */
export const REPLICA_LABELS: { readonly tpod: string } = { tpod: '1' }

/** What runs as root of nothing, and pulls with the pod's logins. */
export const ACCOUNT_NAME = 'tpod-sa'

export const LOGINS_NAME = 'tpod-registry-logins'

/** How the Ingress of a pod reaches KEDA's interceptor, which is in another namespace. */
export const INTERCEPTOR_NAME = 'tpod-interceptor'

export function serviceName({ name }: Pick<PortSpec, 'name'>): string {
  return `tpod-svc-${name}`
}

export function secretName(volume: string): string {
  return `tpod-secret-${volume}`
}

export function claimName(volume: string): string {
  return `tpod-pvc-${volume}`
}

export type WorkloadRef = {
  readonly apiVersion: 'apps/v1'
  readonly kind: 'Deployment' | 'StatefulSet'
  readonly name: string
}

/** What keeps the replicas of a pod. */
export function workloadRef(
  { isStateful }: Pick<PodSpec, 'isStateful'>,
  { namespace }: PodIdentity,
): WorkloadRef {
  const apiVersion = 'apps/v1'
  // The name of a StatefulSet ends up in a label with 11 characters more, so that the long one would be refused.
  if (isStateful) return { apiVersion, kind: 'StatefulSet', name: 'tpod-set' }
  return { apiVersion, kind: 'Deployment', name: `tpod-dep-${namespace.replace(/^tpod-/, '')}` }
}

/** By which everything of a pod is found. */
export function labelsOf({ namespace }: PodIdentity): Record<string, string> {
  return { ...OURS, 'ipdr.dev/pod': namespace }
}

/** Of an object in the pod's namespace. */
export function metadataOf(identity: PodIdentity, name: string): V1ObjectMeta {
  return { name, namespace: identity.namespace, labels: labelsOf(identity) }
}
