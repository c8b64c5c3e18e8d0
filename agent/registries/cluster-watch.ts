import { setTimeout } from 'node:timers/promises'
import type {
  CoreV1Api,
  Informer,
  KubeConfig,
  KubernetesListObject,
  KubernetesObject,
  Watch,
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

/** After how long a watch without a word is begun again, in ms. 90 s: the API server sends a bookmark a minute. */
const SILENCE_MS_MAX = 90_000

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
  readonly #failing = new Set<Subject>()
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
    const kube = new client.KubeConfig()
    if (!(await this.#loads(kube, config))) return
    const subjects = subjectsOf(config, () => kube.makeApiClient(client.CoreV1Api), targets)
    let left = subjects.length
    const onFirstList = (): void => {
      left -= 1
      if (left === 0) targets.secrets.listed()
    }
    const { signal } = this.#stopping
    await Promise.all(
      subjects.map((subject) => {
        const watch = patientWatch(new client.Watch(kube), signal)
        const { path, list, fieldSelector } = subject
        const informer = new client.ListWatch(path, watch, list, false, undefined, fieldSelector)
        return this.#watch(subject, informer, { onFirstList, kube, config })
      }),
    )
  }

  /** Read anew until it can be: it may be written after us. False when we stop. */
  async #loads(kube: KubeConfig, config: ClusterConfig): Promise<boolean> {
    for (let attempt = 0; !this.#stopping.signal.aborted; attempt++) {
      try {
        load(kube, config)
        return true
      } catch (error) {
        // Not the error itself: a parser may quote what it read.
        const why = error instanceof Error && 'code' in error ? String(error.code) : 'not usable'
        if (attempt === 0) {
          this.#log.warn(
            { kubeconfig: config.kubeconfig },
            `pull secrets are not read: ${whereOf(config)} (${why}); tried again`,
          )
        }
        await this.#pause(attempt)
      }
    }
    return false
  }

  async #watch(
    subject: Subject,
    informer: Informer<Watched>,
    {
      onFirstList,
      kube,
      config,
    }: { onFirstList: () => void; kube: KubeConfig; config: ClusterConfig },
  ): Promise<void> {
    const { signal } = this.#stopping
    let isFirst = true
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
        this.#succeeded(subject)
      }
      const error = await failed.promise
      informer.off('error', onError)
      signal.removeEventListener('abort', stopped)
      await informer.stop()
      if (signal.aborted) return
      if (isDown) this.#failed(subject, error, config)
      await this.#pause(attempt)
      try {
        // Who we are may have been renewed.
        load(kube, config)
      } catch {
        // It is known how it was; and told if that does not do.
      }
    }
  }

  /** Both types of secrets have one name, and are told of once. */
  #failed(subject: Subject, error: unknown, config: ClusterConfig): void {
    const isKnown = this.#isFailing(subject)
    this.#failing.add(subject)
    if (isKnown) return
    const reason = reasonOf(error)
    this.#log.warn(
      { reason },
      `${subject.what} cannot be read from the cluster (${reason})${adviceOf(error, config)}: what was known of them is used, and asked again`,
    )
  }

  #succeeded(subject: Subject): void {
    if (!this.#failing.delete(subject) || this.#isFailing(subject)) return
    this.#log.info({}, `${subject.what} are read again`)
  }

  #isFailing({ what }: Subject): boolean {
    return [...this.#failing].some((failing) => failing.what === what)
  }

  async #pause(attempt: number): Promise<void> {
    const { signal } = this.#stopping
    const ms = Math.min(FIRST_PAUSE_MS * 2 ** Math.min(attempt, 10), LONGEST_PAUSE_MS)
    await setTimeout(ms, undefined, { signal, ref: false }).catch(() => undefined)
  }
}

function subjectsOf(
  { namespaces, nodeName }: ClusterConfig,
  api: () => CoreV1Api,
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
        list: () =>
          namespace === undefined
            ? api().listSecretForAllNamespaces({ fieldSelector })
            : api().listNamespacedSecret({ namespace, fieldSelector }),
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
        list: () =>
          namespace === undefined
            ? api().listPodForAllNamespaces({ fieldSelector })
            : api().listNamespacedPod({ namespace, fieldSelector }),
        put: (pod) => pods.put(pod),
        remove: (pod) => pods.remove(pod),
      },
    ]
  })
}

/** Throws if it cannot be read, or names no cluster. */
function load(kube: KubeConfig, { kubeconfig }: ClusterConfig): void {
  if (kubeconfig === undefined) kube.loadFromCluster()
  else kube.loadFromFile(kubeconfig)
  if (kube.getCurrentCluster() === null) throw new Error('it names no cluster')
}

/** For people. */
function whereOf({ kubeconfig }: ClusterConfig): string {
  return kubeconfig ?? 'the service account of the pod'
}

/**
 * The client's watch, with bookmarks: without them one that hears of nothing cannot go on from where it was, and lists all anew. It
 * never rejects, since nobody would hear of that when a watch is begun again, and begins nothing once `signal` has aborted.
 */
function patientWatch(watch: Watch, signal: AbortSignal): Watch {
  const begin = watch.watch.bind(watch)
  watch.watch = async (path, query, onEvent, onEnd) => {
    if (signal.aborted) return new AbortController()
    try {
      const begun = await begin(path, { ...query, allowWatchBookmarks: true }, onEvent, onEnd)
      if (signal.aborted) begun.abort()
      return begun
    } catch (error) {
      onEnd(error)
      return new AbortController()
    }
  }
  // Half a minute otherwise, and the client has no option for it: no bookmark would ever come.
  Reflect.set(watch, 'requestTimeoutMs', SILENCE_MS_MAX)
  return watch
}

/** False, after everything that is already settled. */
async function turn(): Promise<false> {
  await setTimeout(0)
  return false
}

/** A status, a code, or the client's own words; never those of a parser, which may quote what the server sent. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return 'it gave no reason'
  const status = statusOf(error)
  if (typeof status === 'number') return `HTTP ${status}`
  if (typeof status === 'string') return status
  const { cause } = error
  if (cause instanceof Error && 'code' in cause) return String(cause.code)
  return error.name === 'Error' && error.message !== '' ? error.message.slice(0, 200) : error.name
}

/** What to do about it, where we know; to follow the reason. */
function adviceOf(error: unknown, config: ClusterConfig): string {
  const status = error instanceof Error ? statusOf(error) : undefined
  if (status === 401) return `, renew the credentials of ${whereOf(config)}`
  if (status !== 403) return ''
  return ', allow the account of the agent to list and watch them as docs/registries.md shows'
}

/** As a list names it, or a watch. */
function statusOf(error: Error): unknown {
  const facts: Error & { code?: unknown; statusCode?: unknown } = error
  return facts.statusCode ?? facts.code
}
