/** On all that we make, and what tells it from what somebody else put beside it. */
export const OURS: Readonly<Record<string, string>> = {
  'app.kubernetes.io/managed-by': 'ipdr-agent',
}

/** On pods, by which Services and policies find them; as Trusted Pods has it. */
export const POD_LABELS: Readonly<Record<string, string>> = { ...OURS, tpod: '1' }

/** The part of a namespace's name that is its own. */
function suffixOf(namespace: string): string {
  return namespace.replace(/^tpod-/, '')
}

export function workloadName(namespace: string): string {
  return `tpod-dep-${suffixOf(namespace)}`
}

export function serviceName(port: string): string {
  return `tpod-svc-${port}`
}

export function claimName(volume: string): string {
  return `tpod-pvc-${volume}`
}

export function secretName(volume: string): string {
  return `tpod-secret-${volume}`
}

/** Of the HTTPScaledObject: the only one of a pod in existing clusters, and the first here. */
export function scalerName(index: number): string {
  return index === 0 ? 'tpod-hso' : `tpod-hso-${index}`
}

export const LOGINS_SECRET = 'tpod-logins'
export const SERVICE_ACCOUNT = 'tpod'
/** A Service of no pods that leads to KEDA's proxy, for an Ingress of this namespace. */
export const INTERCEPTOR_SERVICE = 'tpod-interceptor'
/** By which replicas of a stateful pod have names. */
export const HEADLESS_SERVICE = 'tpod-replicas'
