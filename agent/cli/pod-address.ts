import type { Address } from '../../proto/messages/ipdr/deploy_pb.js'

/** Where a port of a pod is reached, in words. */
export function addressText({ where }: Address): string {
  switch (where.case) {
    case 'url':
      return where.value
    case 'tcpPort':
      return `TCP port ${where.value} of any node`
    case 'service':
      return `${where.value}, inside`
    default:
      return 'nowhere'
  }
}

/** The same in a document. */
export function addressDocument({ container, containerPort, where }: Address): object {
  return {
    container,
    containerPort,
    ...(where.case === 'url' && { url: where.value }),
    ...(where.case === 'tcpPort' && { tcpPort: where.value }),
    ...(where.case === 'service' && { service: where.value }),
  }
}
