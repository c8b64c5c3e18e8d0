import type {
  V1NetworkPolicy,
  V1NetworkPolicyPeer,
  V1NetworkPolicyPort,
  V1NetworkPolicySpec,
} from '@kubernetes/client-node'
import type { ClusterSettings } from '../cluster-settings.ts'
import type { Exposure, PodIdentity, PodSpec } from '../pod-spec.ts'
import { metadataOf } from './object-names.ts'
import { requestScaling } from './request-scaling.ts'
import { mayAskToSleep } from './scale-down-token.ts'

const DNS_NAMESPACE = 'kube-system'

/** By which components/deploy-endpoint knows the control workers. */
const DEPLOY_ENDPOINT = { 'app.kubernetes.io/name': 'ipdr-deploy' }

/** Where NodeLocal DNSCache answers, by its manifest. */
const NODE_DNS = '169.254.20.10/32'

/**
 * No part of the internet, in any cluster. Clouds tell credentials of the node to whoever asks at link-local addresses, and at
 * 168.63.129.16 (Azure), 100.100.100.200 (Alibaba, among the addresses of RFC 6598) and fd00:ec2::254 (AWS).
 */
const NEVER_INTERNET = [
  '169.254.0.0/16',
  '100.64.0.0/10',
  '168.63.129.16/32',
  'fe80::/10',
  'fc00::/7',
]

/** A pod talks to itself, to names, and to the internet; its exposed ports are reached from where their requests come, all else from nowhere. */
export function networkPolicies(
  spec: PodSpec,
  identity: PodIdentity,
  settings: ClusterSettings,
): V1NetworkPolicy[] {
  const policy = (
    name: string,
    rules: Omit<V1NetworkPolicySpec, 'podSelector'>,
  ): V1NetworkPolicy => ({
    apiVersion: 'networking.k8s.io/v1',
    kind: 'NetworkPolicy',
    metadata: metadataOf(identity, name),
    spec: { podSelector: {}, ...rules },
  })
  const { keda, scaleDown, ingressNamespaces, clusterCidrs } = settings
  const isWoken = requestScaling(spec, settings) !== undefined
  const requestsFrom = [
    ...ingressNamespaces,
    ...(isWoken && keda !== undefined ? [keda.namespace] : []),
  ]
  const httpPorts = exposedPorts(spec, 'http')
  const tcpPorts = exposedPorts(spec, 'tcp')
  const policies = [
    policy('tpod-isolated', { policyTypes: ['Ingress', 'Egress'] }),
    policy('tpod-within', {
      policyTypes: ['Ingress', 'Egress'],
      ingress: [{ _from: [{ podSelector: {} }] }],
      egress: [{ to: [{ podSelector: {} }] }],
    }),
    policy('tpod-names', {
      policyTypes: ['Egress'],
      egress: [
        {
          to: [inNamespaces([DNS_NAMESPACE]), { ipBlock: { cidr: NODE_DNS } }],
          ports: [
            { protocol: 'UDP', port: 53 },
            { protocol: 'TCP', port: 53 },
          ],
        },
      ],
    }),
  ]
  const internet = internetOf(clusterCidrs)
  if (internet.length > 0) {
    policies.push(policy('tpod-internet', { policyTypes: ['Egress'], egress: [{ to: internet }] }))
  }
  if (scaleDown !== undefined && mayAskToSleep(spec, settings)) {
    const to = [inNamespaces([settings.namespace], DEPLOY_ENDPOINT)]
    // Where it listens, not the port in its URL: policies count behind services.
    const ports = [{ protocol: 'TCP', port: scaleDown.listen.port }]
    policies.push(policy('tpod-scale-down', { policyTypes: ['Egress'], egress: [{ to, ports }] }))
  }
  // No sender at all would mean any.
  if (httpPorts.length > 0 && requestsFrom.length > 0) {
    const from = [inNamespaces(requestsFrom)]
    policies.push(
      policy('tpod-http', {
        policyTypes: ['Ingress'],
        ingress: [{ _from: from, ports: httpPorts }],
      }),
    )
  }
  if (tcpPorts.length > 0) {
    policies.push(policy('tpod-tcp', { policyTypes: ['Ingress'], ingress: [{ ports: tcpPorts }] }))
  }
  return policies
}

/** As replicas have them: policies count behind services. */
function exposedPorts({ containers }: PodSpec, kind: Exposure['kind']): V1NetworkPolicyPort[] {
  const numbers = containers
    .flatMap(({ ports }) => ports)
    .filter(({ exposure }) => exposure?.kind === kind)
    .map(({ containerPort }) => containerPort)
  return [...new Set(numbers)].map((port) => ({ protocol: 'TCP', port }))
}

/** Whoever has the labels there; without any, everybody. */
function inNamespaces(
  names: readonly string[],
  matchLabels?: Record<string, string>,
): V1NetworkPolicyPeer {
  return {
    ...(matchLabels && { podSelector: { matchLabels } }),
    namespaceSelector: {
      matchExpressions: [
        { key: 'kubernetes.io/metadata.name', operator: 'In', values: [...new Set(names)] },
      ],
    },
  }
}

function internetOf(clusterCidrs: readonly string[]): V1NetworkPolicyPeer[] {
  const outside = [...new Set([...NEVER_INTERNET, ...clusterCidrs])]
  const families = [
    { cidr: '0.0.0.0/0', except: outside.filter((cidr) => !cidr.includes(':')) },
    { cidr: '::/0', except: outside.filter((cidr) => cidr.includes(':')) },
  ]
  // Exceptions must be parts: where the operator keeps all of a family, nothing of it is left.
  return families
    .filter(({ except }) => !except.some((cidr) => cidr.endsWith('/0')))
    .map((ipBlock) => ({ ipBlock }))
}
