import { setTimeout } from 'node:timers/promises'
import type {
  CoreV1Api,
  DiscoveryV1Api,
  Informer,
  KubeConfig,
  KubernetesListObject,
  KubernetesObject,
  Watch,
} from '@kubernetes/client-node'
import type { Log } from '../../snapshotter/log.ts'
import { type KubeAccess, loadAccess, whereOf } from './kube-access.ts'

/** Before a watch that failed is begun again, in ms: 1 s, then twice that each time, up to 1 min. */
const FIRST_PAUSE_MS = 1_000
const LONGEST_PAUSE_MS = 60_000

/** After how long a watch without a word is begun again, in ms. 90 s: the API server sends a bookmark a minute. */
const SILENCE_MS_MAX = 90_000

export type Watched = KubernetesObject & object

/** The parts of the API that are listed from, each as who we are now. */
export type KubeApis = { readonly core: CoreV1Api; readonly discovery: DiscoveryV1Api }

/** What of the cluster is watched. */
export type Subject = {
  /** For people, in the plural; what has the same name is told of once. */
  readonly what: string
  readonly path: string
  readonly fieldSelector?: string
  readonly labelSelector?: string
  /** The same as what is watched, by the same selectors. */
  readonly list: (apis: KubeApis) => Promise<KubernetesListObject<Watched>>
  readonly put: (object: Watched) => void
  readonly remove: (object: Watched) => void
}

type Collaborators = {
  readonly log: Pick<Log, 'info' | 'warn'>
  /** For people, in the plural: all subjects together. */
  readonly what: string
  /** The page that shows which rights are needed. */
  readonly page: string
  /** Every subject has been listed once. */
  readonly onListed?: () => void
}

/**
 * Shows its subjects what the cluster has of them, until it is disposed of. Never rejects: an API that is away is logged once and asked
 * again, and meanwhile nothing is removed. Objects without a name are left out.
 */
export class ApiWatch implements AsyncDisposable {
  readonly #stopping = new AbortController()
  readonly #access: KubeAccess
  readonly #parts: Collaborators
  readonly #failing = new Set<Subject>()
  readonly #watching: Promise<void>

  constructor(access: KubeAccess, subjects: readonly Subject[], parts: Collaborators) {
    this.#access = access
    this.#parts = parts
    this.#watching = this.#watchAll(subjects)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort()
    await this.#watching
  }

  async #watchAll(subjects: readonly Subject[]): Promise<void> {
    // Tens of megabytes, which only clusters that are watched have to pay for.
    const client = await import('@kubernetes/client-node')
    const kube = new client.KubeConfig()
    if (!(await this.#loads(kube))) return
    const apis: KubeApis = {
      get core() {
        return kube.makeApiClient(client.CoreV1Api)
      },
      get discovery() {
        return kube.makeApiClient(client.DiscoveryV1Api)
      },
    }
    let left = subjects.length
    const onFirstList = (): void => {
      left -= 1
      if (left === 0) this.#parts.onListed?.()
    }
    const { signal } = this.#stopping
    await Promise.all(
      subjects.map((subject) => {
        const watch = patientWatch(new client.Watch(kube), signal)
        const { path, labelSelector, fieldSelector } = subject
        const list = async (): Promise<KubernetesListObject<Watched>> => {
          const listed = await subject.list(apis)
          return { ...listed, items: listed.items.filter(isNamed) }
        }
        const informer = new client.ListWatch(
          path,
          watch,
          list,
          false,
          labelSelector,
          fieldSelector,
        )
        return this.#watch(subject, informer, { onFirstList, kube })
      }),
    )
  }

  /** Read anew until it can be: it may be written after us. False when we stop. */
  async #loads(kube: KubeConfig): Promise<boolean> {
    for (let attempt = 0; !this.#stopping.signal.aborted; attempt++) {
      try {
        loadAccess(kube, this.#access)
        return true
      } catch (error) {
        // Not the error itself: a parser may quote what it read.
        const why = error instanceof Error && 'code' in error ? String(error.code) : 'not usable'
        if (attempt === 0) {
          this.#parts.log.warn(
            { kubeconfig: this.#access.kubeconfig },
            `${this.#parts.what} are not read: ${whereOf(this.#access)} (${why}); tried again`,
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
    { onFirstList, kube }: { onFirstList: () => void; kube: KubeConfig },
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
      if (isDown) this.#failed(subject, error)
      await this.#pause(attempt)
      try {
        // Who we are may have been renewed.
        loadAccess(kube, this.#access)
      } catch {
        // It is known how it was; and told if that does not do.
      }
    }
  }

  /** Subjects of one name are told of once. */
  #failed(subject: Subject, error: unknown): void {
    const isKnown = this.#isFailing(subject)
    this.#failing.add(subject)
    if (isKnown) return
    const reason = reasonOf(error)
    this.#parts.log.warn(
      { reason },
      `${subject.what} cannot be read from the cluster (${reason})${this.#adviceOn(error)}: what was known of them is used, and asked again`,
    )
  }

  #succeeded(subject: Subject): void {
    if (!this.#failing.delete(subject) || this.#isFailing(subject)) return
    this.#parts.log.info({}, `${subject.what} are read again`)
  }

  #isFailing({ what }: Subject): boolean {
    return [...this.#failing].some((failing) => failing.what === what)
  }

  /** What to do about it, where we know; to follow the reason. */
  #adviceOn(error: unknown): string {
    const status = error instanceof Error ? statusOf(error) : undefined
    if (status === 401) return `, renew the credentials of ${whereOf(this.#access)}`
    if (status !== 403) return ''
    return `, allow the account of the agent to list and watch them as ${this.#parts.page} shows`
  }

  /** Not all of a cluster's agents at once: an API server that is back has enough to do. */
  async #pause(attempt: number): Promise<void> {
    const { signal } = this.#stopping
    const ms = Math.min(FIRST_PAUSE_MS * 2 ** Math.min(attempt, 10), LONGEST_PAUSE_MS)
    const scattered = ms * (0.5 + Math.random() / 2)
    await setTimeout(scattered, undefined, { signal, ref: false }).catch(() => undefined)
  }
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
      const asked = { ...query, allowWatchBookmarks: true }
      const onSound: typeof onEvent = (type, object, event) => {
        // A bookmark has no name, and what the client reads of it is there in all that have one.
        if (isTold(type, object)) onEvent(type, object, event)
      }
      const begun = await begin(path, asked, onSound, onEnd)
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

/** The client fails, and is not heard of, at an object without metadata. */
function isTold(type: string, object: unknown): boolean {
  if (type === 'ERROR') return typeof object === 'object' && object !== null
  return type === 'BOOKMARK' ? hasMetadata(object) : isNamed(object)
}

function isNamed(object: unknown): boolean {
  return hasMetadata(object) && typeof object.metadata.name === 'string'
}

function hasMetadata(object: unknown): object is { metadata: { name?: unknown } } {
  if (typeof object !== 'object' || object === null || !('metadata' in object)) return false
  return typeof object.metadata === 'object' && object.metadata !== null
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

/** As a list names it, or a watch. */
function statusOf(error: Error): unknown {
  const facts: Error & { code?: unknown; statusCode?: unknown } = error
  return facts.statusCode ?? facts.code
}
