import { type ClusterConfig, ClusterWatch } from '../../agent/registries/cluster-watch.ts'
import { NodePods } from '../../agent/registries/node-pods.ts'
import { PullSecrets } from '../../agent/registries/pull-secrets.ts'
import { listeningLog } from './fuse-mount.ts'

/** What the agent reads of a cluster, and what it says of it. */
export type ClusterReader = AsyncDisposable & {
  readonly pods: NodePods
  readonly log: ReturnType<typeof listeningLog>
  /** Credentials for `r.example/team/app` that pods of these namespaces may use, as `<user>:<password> of <origin>`. */
  readonly shown: (...namespaces: string[]) => Promise<string[]>
}

/** Reads pull secrets, and pods if a node is named, as the agent does. */
export function readCluster(config: ClusterConfig): ClusterReader {
  const log = listeningLog()
  const secrets = new PullSecrets({ onProblem: (sentence) => log.warn({}, sentence) })
  const pods = new NodePods()
  const watch = new ClusterWatch(config, { secrets, pods, log })
  return {
    pods,
    log,
    shown: async (...namespaces) => {
      const place = { host: 'r.example', repository: 'team/app' }
      const signal = AbortSignal.timeout(20_000)
      const found = await secrets.loginsFor(place, { namespaces, signal })
      return found.map((login) => {
        const basic = login.basicAuthorization() ?? ''
        return `${Buffer.from(basic.slice(6), 'base64').toString()} of ${login.origin}`
      })
    },
    [Symbol.asyncDispose]: () => watch[Symbol.asyncDispose](),
  }
}

/** What a config.json holds of a registry where user `u` has this password. */
export function authsOf(password: string, host = 'r.example'): { auths: object } {
  return { auths: { [host]: { auth: Buffer.from(`u:${password}`).toString('base64') } } }
}
