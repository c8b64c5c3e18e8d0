import type { Log } from '../../snapshotter/log.ts'
import type { Config } from '../config.ts'
import { ApiWatch, type Subject } from '../kubernetes/api-watch.ts'
import { EndpointSlices, type FoundNode } from './endpoint-slices.ts'

/** How long changes are gathered before they count, in ms. 500: the slices of a large cluster, which come one by one, and nobody misses it. */
const GATHER_MS = 500

type Collaborators = {
  readonly log: Pick<Log, 'debug' | 'info' | 'warn'>
  /** All that are known now; once at first, even if there is none, and then whenever it has changed. */
  readonly onNodes: (nodes: readonly FoundNode[]) => void
}

/**
 * Finds the agents of the cluster through the EndpointSlices of their headless Service, until it is disposed of. What was found stays while
 * the API is away; nobody waits for it.
 */
export class KubernetesPeers implements AsyncDisposable {
  readonly #slices: EndpointSlices
  readonly #watch: ApiWatch
  readonly #onNodes: Collaborators['onNodes']
  readonly #log: Collaborators['log']
  readonly #what: string
  #timer: NodeJS.Timeout | undefined
  #last: string | undefined

  constructor(
    { kubeconfig, namespace, service }: NonNullable<Config['cluster']['kubernetes']>,
    { log, onNodes }: Collaborators,
  ) {
    this.#onNodes = onNodes
    this.#slices = new EndpointSlices({ onProblem: (sentence) => log.warn({}, sentence) })
    const labelSelector = `kubernetes.io/service-name=${service}`
    const what = `peers of Service ${namespace}/${service}`
    this.#what = what
    this.#log = log
    const subject: Subject = {
      what,
      path: `/apis/discovery.k8s.io/v1/namespaces/${namespace}/endpointslices`,
      labelSelector,
      list: ({ discovery }) => discovery.listNamespacedEndpointSlice({ namespace, labelSelector }),
      put: (slice) => {
        this.#slices.put(slice)
        this.#gather()
      },
      remove: (slice) => {
        this.#slices.remove(slice)
        this.#gather()
      },
    }
    this.#watch = new ApiWatch({ kubeconfig }, [subject], {
      log,
      what,
      page: 'node-image/kubernetes/README.md',
      onListed: () => this.#tell(),
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#watch[Symbol.asyncDispose]()
    clearTimeout(this.#timer)
  }

  #gather(): void {
    this.#timer ??= setTimeout(() => this.#tell(), GATHER_MS).unref()
  }

  #tell(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const nodes = this.#slices.nodes()
    const told = JSON.stringify(nodes)
    if (told === this.#last) return
    const ready = nodes.filter(({ isReady }) => isReady).length
    const sentence = `${this.#what}: ${ready} nodes are ready of ${nodes.length}`
    if (this.#last === undefined) this.#log.info({}, sentence)
    else this.#log.debug({}, sentence)
    this.#last = told
    this.#onNodes(nodes)
  }
}
