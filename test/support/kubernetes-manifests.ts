import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type KubernetesObject, loadAllYaml, type V1DaemonSet } from '@kubernetes/client-node'

/** Where the manifests are. */
export const KUBERNETES: string = join(import.meta.dirname, '../../node-image/kubernetes')

/** Every object in a file of node-image/kubernetes. */
export function objectsIn(path: string): KubernetesObject[] {
  return loadAllYaml(readFileSync(join(KUBERNETES, path), 'utf8')) as KubernetesObject[]
}

/** The DaemonSet of the base. */
export function agentDaemonSet(): V1DaemonSet {
  const [daemonSet] = objectsIn('base/daemonset.yaml')
  return daemonSet as V1DaemonSet
}

/** The agent's configuration in the base, not yet checked. */
export function agentConfig(): Record<string, unknown> {
  const text = readFileSync(join(KUBERNETES, 'base/config.json'), 'utf8')
  return JSON.parse(text) as Record<string, unknown>
}

/** What setpriv leaves the agent of all that a privileged container has, as linux/capability.h names it. */
export function agentCapabilities(): string[] {
  const [agent] = agentDaemonSet().spec?.template.spec?.containers ?? []
  const words = agent?.command ?? []
  const [, kept = ''] = /^--bounding-set=-all,(.*)$/m.exec(words.join('\n')) ?? []
  return kept.split(',').map((name) => `CAP_${name.slice(1).toUpperCase()}`)
}
