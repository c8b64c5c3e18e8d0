import { create } from '@bufbuild/protobuf'
import type { V1Service } from '@kubernetes/client-node'
import { type Address, AddressSchema } from '../../proto/messages/ipdr/deploy_pb.js'
import { serviceName } from './objects/object-names.ts'
import type { PodSpec, PortSpec } from './pod-spec.ts'

/**
 * Where the ports of a pod are reached, one address a port, in the order of the pod. `services` are those of its namespace: they know which
 * ports of the nodes the cluster has chosen, and until they do, such an address does not say where.
 */
export function addressesOf(
  { containers }: PodSpec,
  services: readonly V1Service[] = [],
): Address[] {
  return containers.flatMap(({ name, ports }) =>
    ports.map((port) =>
      create(AddressSchema, {
        container: name,
        containerPort: port.containerPort,
        where: whereOf(port, services),
      }),
    ),
  )
}

function whereOf(port: PortSpec, services: readonly V1Service[]): Address['where'] {
  const service = serviceName(port)
  const { exposure, servicePort } = port
  if (exposure === undefined) return { case: 'service', value: `${service}:${servicePort}` }
  if (exposure.kind === 'http') return { case: 'url', value: `http://${exposure.host}` }
  const found = services.find(({ metadata }) => metadata?.name === service)
  const nodePort = found?.spec?.ports?.[0]?.nodePort ?? exposure.nodePort
  return nodePort === undefined ? { case: undefined } : { case: 'tcpPort', value: nodePort }
}
