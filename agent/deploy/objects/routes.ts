import type { KubernetesObject, V1Ingress } from '@kubernetes/client-node'
import type { ClusterSettings } from '../cluster-settings.ts'
import type { PodIdentity, PodSpec } from '../pod-spec.ts'
import { INTERCEPTOR_NAME, metadataOf, serviceName } from './object-names.ts'
import { type HttpPort, httpPorts, requestScaling } from './request-scaling.ts'

/** Of the Gateway API, as far as we use it. */
export type HttpRoute = KubernetesObject & {
  readonly spec: {
    readonly parentRefs: readonly Extract<
      ClusterSettings['routes'],
      { kind: 'gateway' }
    >['parent'][]
    readonly hostnames: readonly string[]
    readonly rules: readonly {
      readonly backendRefs: readonly { readonly name: string; readonly port: number }[]
    }[]
  }
}

type Backend = { readonly name: string; readonly port: number }

/**
 * What leads the pod's host names to it. With a gateway there is none for the host name that KEDA counts requests for: its interceptor is
 * in another namespace, which would have to let each pod's namespace in, so the operator's one route of all host names leads there.
 */
export function routes(
  spec: PodSpec,
  identity: PodIdentity,
  settings: ClusterSettings,
): (V1Ingress | HttpRoute)[] {
  const { routes, keda } = settings
  const counted = requestScaling(spec, settings)?.host
  return httpPorts(spec).flatMap((http): (V1Ingress | HttpRoute)[] => {
    const { port, host } = http
    const direct = { name: serviceName(port), port: port.servicePort }
    if (routes.kind === 'none') return []
    if (routes.kind === 'gateway') {
      if (host === counted) return []
      return [httpRoute(http, direct, { identity, parent: routes.parent })]
    }
    const isCounted = keda !== undefined && host === counted
    const backend = isCounted ? { name: INTERCEPTOR_NAME, port: keda.port } : direct
    return [ingress(http, backend, { identity, className: routes.className })]
  })
}

function ingress(
  { port, host }: HttpPort,
  backend: Backend,
  {
    identity,
    className,
  }: { readonly identity: PodIdentity; readonly className: string | undefined },
): V1Ingress {
  const service = { name: backend.name, port: { number: backend.port } }
  return {
    apiVersion: 'networking.k8s.io/v1',
    kind: 'Ingress',
    metadata: metadataOf(identity, `tpod-ingress-${port.name}`),
    spec: {
      ...(className !== undefined && { ingressClassName: className }),
      rules: [{ host, http: { paths: [{ path: '/', pathType: 'Prefix', backend: { service } }] } }],
    },
  }
}

function httpRoute(
  { port, host }: HttpPort,
  backend: Backend,
  {
    identity,
    parent,
  }: {
    readonly identity: PodIdentity
    readonly parent: HttpRoute['spec']['parentRefs'][number]
  },
): HttpRoute {
  return {
    apiVersion: 'gateway.networking.k8s.io/v1',
    kind: 'HTTPRoute',
    metadata: metadataOf(identity, `tpod-route-${port.name}`),
    spec: { parentRefs: [parent], hostnames: [host], rules: [{ backendRefs: [backend] }] },
  }
}
