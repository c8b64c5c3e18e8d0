import type { V1Service } from '@kubernetes/client-node'
import type { ClusterSettings } from '../cluster-settings.ts'
import type { PodIdentity, PodSpec, PortSpec } from '../pod-spec.ts'
import {
  INTERCEPTOR_NAME,
  metadataOf,
  REPLICA_LABELS,
  serviceName,
  workloadRef,
} from './object-names.ts'
import { requestScaling } from './request-scaling.ts'

/** One for each port, and what else needs a name in the pod's namespace. */
export function services(
  spec: PodSpec,
  identity: PodIdentity,
  settings: ClusterSettings,
): V1Service[] {
  const ports = spec.containers.flatMap(({ ports }) => ports)
  return [
    ...ports.map((port) => portService(port, identity)),
    ...(spec.isStateful ? [replicaNames(spec, identity)] : []),
    ...interceptor(spec, identity, settings),
  ]
}

function portService(port: PortSpec, identity: PodIdentity): V1Service {
  const { name, servicePort, containerPort, exposure } = port
  const nodePort = exposure?.kind === 'tcp' ? exposure.nodePort : undefined
  return {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: metadataOf(identity, serviceName(port)),
    spec: {
      type: exposure?.kind === 'tcp' ? 'NodePort' : 'ClusterIP',
      selector: REPLICA_LABELS,
      ports: [
        {
          name,
          protocol: 'TCP',
          port: servicePort,
          targetPort: containerPort,
          ...(nodePort !== undefined && { nodePort }),
        },
      ],
    },
  }
}

/** A name for each replica, as `tpod-set-0.tpod-set`, from its start on: replicas may become ready by finding each other. */
function replicaNames(spec: PodSpec, identity: PodIdentity): V1Service {
  return {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: metadataOf(identity, workloadRef(spec, identity).name),
    spec: { clusterIP: 'None', selector: REPLICA_LABELS, publishNotReadyAddresses: true },
  }
}

/** An Ingress leads to services of its own namespace only. Routes of a gateway could not use it: they refuse services that are just a name. */
function interceptor(spec: PodSpec, identity: PodIdentity, settings: ClusterSettings): V1Service[] {
  const { keda, routes } = settings
  if (keda === undefined || routes.kind !== 'ingress') return []
  if (requestScaling(spec, settings) === undefined) return []
  const { namespace, service, port } = keda
  return [
    {
      apiVersion: 'v1',
      kind: 'Service',
      metadata: metadataOf(identity, INTERCEPTOR_NAME),
      spec: {
        type: 'ExternalName',
        // Whole, since a router may ask without the search list of a pod.
        externalName: `${service}.${namespace}.svc.cluster.local`,
        ports: [{ name: 'http', protocol: 'TCP', port }],
      },
    },
  ]
}
