import type { KubernetesObject } from '@kubernetes/client-node'
import type { ClusterSettings } from '../cluster-settings.ts'
import type { PodIdentity, PodSpec } from '../pod-spec.ts'
import { metadataOf, serviceName, type WorkloadRef, workloadRef } from './object-names.ts'
import { requestScaling } from './request-scaling.ts'

/** Of KEDA's HTTP add-on 0.7 and later, as far as we use it. */
export type HttpScaledObject = KubernetesObject & {
  readonly spec: {
    readonly hosts: readonly string[]
    readonly scaleTargetRef: WorkloadRef & { readonly service: string; readonly port: number }
    readonly replicas: { readonly min: number; readonly max: number }
    readonly targetPendingRequests?: number
  }
}

/** One where KEDA scales the pod, else none. */
export function httpScaledObjects(
  spec: PodSpec,
  identity: PodIdentity,
  settings: ClusterSettings,
): HttpScaledObject[] {
  const scaling = requestScaling(spec, settings)
  if (scaling === undefined) return []
  const { port, host, min, max } = scaling
  const { pendingRequests } = spec.scaling
  return [
    {
      apiVersion: 'http.keda.sh/v1alpha1',
      kind: 'HTTPScaledObject',
      metadata: metadataOf(identity, 'tpod-hso'),
      spec: {
        hosts: [host],
        scaleTargetRef: {
          ...workloadRef(spec, identity),
          service: serviceName(port),
          port: port.servicePort,
        },
        replicas: { min, max },
        ...(pendingRequests !== undefined && { targetPendingRequests: pendingRequests }),
      },
    },
  ]
}
