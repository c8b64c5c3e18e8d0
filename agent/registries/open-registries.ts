import { readFile } from 'node:fs/promises'
import type { Config } from '../config.ts'
import type { Logger } from '../logger.ts'
import type { Metrics } from '../metrics.ts'
import { AgentRegistries } from './agent-registries.ts'
import { DockerConfig } from './docker-config.ts'
import { KubeletPulls } from './kubelet-pulls.ts'
import type { RegistryHost } from './registry-http.ts'

type Collaborators = {
  readonly log: Logger
  readonly metrics: Pick<Metrics, 'registryReceived' | 'registryLoginRefused'>
}

/** What is used of registries: the images in them, and what learns of credentials from the kubelet. */
export type Registries = {
  readonly images: AgentRegistries
  readonly pulls: KubeletPulls
}

/** The registries as they are configured; asks none of them. A file that cannot be read is logged, and no reason not to start. */
export async function openRegistries(
  config: Config['registries'],
  { log: parent, metrics }: Collaborators,
): Promise<Registries> {
  const log = parent.child({ part: 'registries' })
  const hosts: Record<string, RegistryHost> = {}
  for (const [host, { mirror, insecure, caFile }] of Object.entries(config.hosts)) {
    hosts[host] = { mirror, insecure, ca: await certificates(caFile, log) }
  }
  const onProblem = (sentence: string): void => log.warn({}, sentence)
  const files = config.credentials.dockerConfigs.map(
    (path) => new DockerConfig(path, { onProblem }),
  )
  const pulls = new KubeletPulls()
  const images = new AgentRegistries({ hosts }, { logins: [pulls, ...files], pulls, log, metrics })
  return { images, pulls }
}

async function certificates(path: string | undefined, log: Logger): Promise<string | undefined> {
  if (path === undefined) return undefined
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    log.warn({ path }, `certificates in ${path} are not trusted, the file cannot be read: ${why}`)
    return undefined
  }
}
