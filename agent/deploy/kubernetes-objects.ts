import type { KubernetesObject } from '@kubernetes/client-node'
import type { ClusterSettings } from './cluster-settings.ts'
import { limitRange, resourceQuota } from './objects/bounds.ts'
import { httpScaledObjects } from './objects/http-scaled-object.ts'
import { podNamespace } from './objects/namespace.ts'
import { networkPolicies } from './objects/network-policies.ts'
import { pullSecrets, serviceAccount } from './objects/registry-logins.ts'
import { routes } from './objects/routes.ts'
import { services } from './objects/services.ts'
import { claims, secrets } from './objects/volumes.ts'
import { workload } from './objects/workload.ts'
import type { PodIdentity, PodSpec } from './pod-spec.ts'

export type ObjectsOptions = {
  /** Nothing of the pod has been applied whole so far: nobody else has a say in how many replicas there are. */
  readonly isNew: boolean
}

/**
 * What a pod is in the cluster: its namespace, and all that is in it, in the order in which it must be applied, so that nothing runs before
 * its bounds are there, and what it reads. The same pod gives the same objects, whatever the order of its maps.
 */
export function kubernetesObjects(
  spec: PodSpec,
  identity: PodIdentity,
  settings: ClusterSettings,
  { isNew }: ObjectsOptions,
): KubernetesObject[] {
  return [
    podNamespace(spec, identity),
    resourceQuota(spec, identity),
    limitRange(spec, identity),
    ...networkPolicies(spec, identity, settings),
    ...pullSecrets(spec, identity),
    serviceAccount(spec, identity),
    ...secrets(spec, identity),
    ...claims(spec, identity, settings),
    workload(spec, identity, { settings, isNew }),
    ...services(spec, identity, settings),
    ...httpScaledObjects(spec, identity, settings),
    ...routes(spec, identity, settings),
  ]
}
