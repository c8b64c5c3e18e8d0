import { readFile } from 'node:fs/promises'
import type { Config } from '../config.ts'
import type { Logger } from '../logger.ts'
import type { Metrics } from '../metrics.ts'
import { AgentRegistries } from './agent-registries.ts'
import { ClusterWatch } from './cluster-watch.ts'
import { DockerConfig } from './docker-config.ts'
import { KubeletPulls } from './kubelet-pulls.ts'
import { NodePods } from './node-pods.ts'
import { PullSecrets } from './pull-secrets.ts'
import type { RegistryHost } from './registry-http.ts'

type Collaborators = {
  readonly log: Logger
  readonly metrics: Pick<Metrics, 'registryReceived' | 'registryLoginRefused'>
}

/** What is used of registries: the images in them, and what learns of credentials from the kubelet. */
export type Registries = AsyncDisposable & {
  readonly images: AgentRegistries
  readonly pulls: KubeletPulls
}

/** The registries as they are configured; asks none of them. A file that cannot be read is logged, and no reason not to start. */
export async function openRegistries(
  config: Config['registries'],
  { log: parent, metrics }: Collaborators,
): Promise<Registries> {
  const log = parent.child({ part: 'registries' })
  const { credentials } = config
  const hosts: Record<string, RegistryHost> = {}
  for (const [host, { mirror, insecure, caFile }] of Object.entries(config.hosts)) {
    hosts[host] = { mirror, insecure, ca: await certificates(caFile, log) }
  }
  const onProblem = (sentence: string): void => log.warn({}, sentence)
  const files = credentials.dockerConfigs.map((path) => new DockerConfig(path, { onProblem }))
  const opened = new AsyncDisposableStack()
  const pulls = new KubeletPulls()
  const pods = new NodePods()
  const secrets = clusterSecrets(credentials.pullSecrets, { pods, log, onProblem, opened })
  const images = opened.use(
    new AgentRegistries(
      { hosts },
      {
        logins: [pulls, ...secrets, ...files],
        pulls: {
          namespacesPulling: (reference) => {
            const known = [pulls, pods].flatMap((each) => each.namespacesPulling(reference))
            return [...new Set(known)].toSorted()
          },
        },
        log,
        metrics,
      },
    ),
  )
  return { images, pulls, [Symbol.asyncDispose]: () => opened.disposeAsync() }
}

function clusterSecrets(
  config: Config['registries']['credentials']['pullSecrets'],
  {
    pods,
    log,
    onProblem,
    opened,
  }: {
    readonly pods: NodePods
    readonly log: Logger
    readonly onProblem: (sentence: string) => void
    readonly opened: AsyncDisposableStack
  },
): PullSecrets[] {
  if (config === undefined) return []
  const secrets = new PullSecrets({ onProblem })
  opened.use(new ClusterWatch(config, { secrets, pods, log }))
  return [secrets]
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
