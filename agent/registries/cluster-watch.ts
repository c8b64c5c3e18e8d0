import type { Log } from '../../snapshotter/log.ts'
import { ApiWatch, type Subject } from '../kubernetes/api-watch.ts'
import type { NodePods } from './node-pods.ts'
import { PULL_SECRET_TYPES, type PullSecrets } from './pull-secrets.ts'

/** How the cluster's pull secrets are read. */
export type ClusterConfig = {
  /** Where the API is and who we are; undefined: as in a pod, by its service account. */
  readonly kubeconfig?: string | undefined
  /** Only these namespaces' secrets; undefined: those of all. */
  readonly namespaces?: readonly string[] | undefined
  /** This node, whose pods tell for whom images are pulled; undefined: the image service has to. */
  readonly nodeName?: string | undefined
}

/**
 * Keeps `secrets` and `pods` as the cluster has them, until it is disposed of. Never rejects: an API that is away is logged once and asked
 * again, and what was known of it stays.
 */
export class ClusterWatch implements AsyncDisposable {
  readonly #watch: ApiWatch

  constructor(
    config: ClusterConfig,
    {
      secrets,
      pods,
      log,
    }: { secrets: PullSecrets; pods: NodePods; log: Pick<Log, 'info' | 'warn'> },
  ) {
    this.#watch = new ApiWatch(config, subjectsOf(config, { secrets, pods }), {
      log,
      what: 'pull secrets',
      page: 'docs/registries.md',
      onListed: () => secrets.listed(),
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#watch[Symbol.asyncDispose]()
  }
}

function subjectsOf(
  { namespaces, nodeName }: ClusterConfig,
  { secrets, pods }: { secrets: PullSecrets; pods: NodePods },
): Subject[] {
  return (namespaces ?? [undefined]).flatMap((namespace) => {
    const [path, suffix] =
      namespace === undefined
        ? ['/api/v1', '']
        : [`/api/v1/namespaces/${namespace}`, ` in namespace ${namespace}`]
    const subjects: Subject[] = PULL_SECRET_TYPES.map((type) => {
      const fieldSelector = `type=${type}`
      return {
        what: `pull secrets${suffix}`,
        path: `${path}/secrets`,
        fieldSelector,
        list: ({ core }) =>
          namespace === undefined
            ? core.listSecretForAllNamespaces({ fieldSelector })
            : core.listNamespacedSecret({ namespace, fieldSelector }),
        put: (secret) => secrets.put(secret),
        remove: (secret) => secrets.remove(secret),
      }
    })
    if (nodeName === undefined) return subjects
    const fieldSelector = `spec.nodeName=${nodeName}`
    return [
      ...subjects,
      {
        what: `pods of this node${suffix}`,
        path: `${path}/pods`,
        fieldSelector,
        list: ({ core }) =>
          namespace === undefined
            ? core.listPodForAllNamespaces({ fieldSelector })
            : core.listNamespacedPod({ namespace, fieldSelector }),
        put: (pod) => pods.put(pod),
        remove: (pod) => pods.remove(pod),
      },
    ]
  })
}
