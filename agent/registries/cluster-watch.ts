import { setTimeout } from 'node:timers/promises'
import type {
  CoreV1Api,
  Informer,
  KubeConfig,
  KubernetesListObject,
  KubernetesObject,
} from '@kubernetes/client-node'
import type { Log } from '../../snapshotter/log.ts'
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

/** Before a watch that failed is begun again, in ms: 1 s, then twice that each time, up to 1 min. */
const FIRST_PAUSE_MS = 1_000
const LONGEST_PAUSE_MS = 60_000

type Watched = KubernetesObject & object

type Subject = {
  readonly what: string
  readonly path: string
  readonly fieldSelector: string
  readonly list: () => Promise<KubernetesListObject<Watched>>
  readonly put: (object: Watched) => void
  readonly remove: (object: Watched) => void
}

/**
 * Keeps `secrets` and `pods` as the cluster has them, until it is disposed of. Never rejects: an API that is away is logged once and asked
 * again, and what was known of it stays.
 */
export class ClusterWatch implements AsyncDisposable {
  readonly #stopping = new AbortController()
  readonly #log: Pick<Log, 'info' | 'warn'>
  readonly #watching: Promise<void>

  constructor(
    config: ClusterConfig,
    {
      secrets,
      pods,
      log,
    }: { secrets: PullSecrets; pods: NodePods; log: Pick<Log, 'info' | 'warn'> },
  ) {
    this.#log = log
    this.#watching = this.#watchAll(config, { secrets, pods })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort()
    await this.#watching
  }

  async #watchAll(
    config: ClusterConfig,
    targets: { secrets: PullSecrets; pods: NodePods },
  ): Promise<void> {
    // Tens of megabytes, which only clusters that are watched have to pay for.
    const client = await import('@kubernetes/client-node')
    const kube = await this.#kubeConfig(config, () => new client.KubeConfig())
    if (kube === undefined) return
    const api = kube.makeApiClient(client.CoreV1Api)
    const subjects = subjectsOf(config, api, targets)
    let left = subjects.length
    const firstList = (): void => {
      left -= 1
      if (left === 0) targets.secrets.listed()
    }
    await Promise.all(
      subjects.map((subject) =>
        this.#watch(
          subject,
          () =>
            new client.ListWatch(
              subject.path,
              new client.Watch(kube),
              subject.list,
              false,
              undefined,
              subject.fieldSelector,
            ),
          firstList,
        ),
      ),
    )
  }

  /** Read anew until it can be: it may be written after us. Undefined when we stop. */
  async #kubeConfig(
    { kubeconfig }: ClusterConfig,
    make: () => KubeConfig,
  ): Promise<KubeConfig | undefined> {
    for (let attempt = 0; !this.#stopping.signal.aborted; attempt++) {
      try {
        const kube = make()
        if (kubeconfig === undefined) kube.loadFromCluster()
        else kube.loadFromFile(kubeconfig)
        if (kube.getCurrentCluster() === null) throw new Error('it names no cluster')
        return kube
      } catch (error) {
        const where = kubeconfig ?? 'the service account of the pod'
        // Not the error itself: a parser may quote what it read.
        const why = error instanceof Error && 'code' in error ? String(error.code) : 'not usable'
        if (attempt === 0) {
          this.#log.warn(
            { kubeconfig },
            `pull secrets are not read: ${where} (${why}); tried again`,
          )
        }
        await this.#pause(attempt)
      }
    }
    return undefined
  }

  async #watch(
    subject: Subject,
    make: () => Informer<Watched>,
    onFirstList: () => void,
  ): Promise<void> {
    const { signal } = this.#stopping
    let isFirst = true
    let isFailing = false
    const informer = make()
    informer.on('add', subject.put)
    informer.on('update', subject.put)
    informer.on('delete', subject.remove)
    for (let attempt = 0; !signal.aborted; attempt++) {
      const failed = Promise.withResolvers<unknown>()
      const onError = (error?: unknown): void => failed.resolve(error)
      informer.on('error', onError)
      const stopped = (): void => failed.resolve(undefined)
      signal.addEventListener('abort', stopped, { once: true })
      // Lists, and begins to watch; what goes wrong is told to `onError`, later too.
      await Promise.race([informer.start(), failed.promise])
      const isDown = await Promise.race([failed.promise.then(() => true), turn()])
      if (!isDown) {
        attempt = 0
        if (isFirst) onFirstList()
        isFirst = false
        if (isFailing) this.#log.info({}, `${subject.what} are read again`)
        isFailing = false
      }
      const error = await failed.promise
      informer.off('error', onError)
      signal.removeEventListener('abort', stopped)
      await informer.stop()
      if (signal.aborted) return
      if (!isFailing && isDown) {
        isFailing = true
        this.#log.warn(
          { reason: reasonOf(error) },
          `${subject.what} cannot be read from the cluster (${reasonOf(error)}): what was known of them is used, and asked again`,
        )
      }
      await this.#pause(attempt)
    }
  }

  async #pause(attempt: number): Promise<void> {
    const { signal } = this.#stopping
    const ms = Math.min(FIRST_PAUSE_MS * 2 ** Math.min(attempt, 10), LONGEST_PAUSE_MS)
    await setTimeout(ms, undefined, { signal, ref: false }).catch(() => undefined)
  }
}

function subjectsOf(
  { namespaces, nodeName }: ClusterConfig,
  api: CoreV1Api,
  { secrets, pods }: { secrets: PullSecrets; pods: NodePods },
): Subject[] {
  const subjects: Subject[] = []
  for (const type of PULL_SECRET_TYPES) {
    const fieldSelector = `type=${type}`
    for (const namespace of namespaces ?? [undefined]) {
      subjects.push({
        what: namespace === undefined ? 'pull secrets' : `pull secrets of namespace ${namespace}`,
        path: `/api/v1${namespace === undefined ? '' : `/namespaces/${namespace}`}/secrets`,
        fieldSelector,
        list: () =>
          namespace === undefined
            ? api.listSecretForAllNamespaces({ fieldSelector })
            : api.listNamespacedSecret({ namespace, fieldSelector }),
        put: (secret) => secrets.put(secret),
        remove: (secret) => secrets.remove(secret),
      })
    }
  }
  if (nodeName === undefined) return subjects
  const fieldSelector = `spec.nodeName=${nodeName}`
  return [
    ...subjects,
    {
      what: 'pods of this node',
      path: '/api/v1/pods',
      fieldSelector,
      list: () => api.listPodForAllNamespaces({ fieldSelector }),
      put: (pod) => pods.put(pod),
      remove: (pod) => pods.remove(pod),
    },
  ]
}

/** False, after everything that is already settled. */
async function turn(): Promise<false> {
  await setTimeout(0)
  return false
}

/** A status, a code, or the client's own words; never those of a parser, which may quote what the server sent. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return 'it gave no reason'
  const facts: { code?: unknown; statusCode?: unknown; cause?: unknown } = error
  const status = facts.statusCode ?? facts.code
  if (typeof status === 'number') return `HTTP ${status}`
  if (typeof status === 'string') return status
  const { cause } = facts
  if (cause instanceof Error && 'code' in cause) return String(cause.code)
  return error.name === 'Error' ? error.message.slice(0, 200) : error.name
}
