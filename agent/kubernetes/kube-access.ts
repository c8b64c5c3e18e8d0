import type { KubeConfig } from '@kubernetes/client-node'

/** Where the API is and who we are. */
export type KubeAccess = {
  /** Undefined: as in a pod, by its service account. */
  readonly kubeconfig?: string | undefined
}

/** Reads it into `kube`. Throws if it cannot be read, or names no cluster. */
export function loadAccess(kube: KubeConfig, { kubeconfig }: KubeAccess): void {
  if (kubeconfig === undefined) kube.loadFromCluster()
  else kube.loadFromFile(kubeconfig)
  if (kube.getCurrentCluster() === null) throw new Error('it names no cluster')
}

/** For people. */
export function whereOf({ kubeconfig }: KubeAccess): string {
  return kubeconfig ?? 'the service account of the pod'
}
