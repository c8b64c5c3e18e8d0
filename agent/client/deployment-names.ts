// What may be called how in a deployment, for whoever reads a file and for the agent that takes it.

/** What objects of the cluster can be named after: RFC 1123's labels, short enough for what is put before and after (`nameCharsMax`). */
export const NAME_PATTERN: RegExp = /^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$/

/** Kubernetes' extended resources: a domain and a name. */
const DEVICE = /^(?=.{1,200}$)[a-z0-9.-]+\.[a-z0-9-]+\/[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/

/** What Kubernetes has a meaning of its own for could count against nobody. */
const CLUSTERS_OWN = /(?:^|\.)(?:kubernetes|k8s)\.io\//

/** Whether it is a device like nvidia.com/gpu. */
export function isDevice(name: string): boolean {
  return DEVICE.test(name) && !CLUSTERS_OWN.test(name)
}
