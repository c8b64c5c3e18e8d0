import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { setImmediate } from 'node:timers/promises'

type KubeObject = {
  readonly metadata: {
    readonly namespace: string
    readonly name: string
    readonly labels?: Readonly<Record<string, string>>
  }
  readonly [field: string]: unknown
}

type Kind = 'secrets' | 'pods' | 'endpointslices'
type WatchEvent = { readonly type: string; readonly object: KubeObject }
type Stored = KubeObject & { readonly metadata: { readonly resourceVersion: string } }
type Query = {
  readonly kind: Kind
  readonly namespace: string | undefined
  readonly field: string[]
  readonly label: string[]
}

/** What a server without TLS asks of who connects, so that we see that we send it. */
export const KUBE_TOKEN = 'kube-token'

/**
 * A server that lists and watches secrets, pods and EndpointSlices as kube-apiserver does (Kubernetes API concepts, "Efficient detection of
 * changes"), and nothing else: a list with a resource version, then events as JSON lines from that version on, field selectors
 * on `type` and `spec.nodeName`, a label by its value, 410 for a version that it has forgotten. What a real one does is tried in test/peers.
 */
export class KubeApi implements AsyncDisposable {
  readonly url: string
  /** Paths and queries that were asked for, in order. */
  readonly asked: string[] = []
  /** Answers every request with this status while it is set. */
  failing: number | undefined
  /** Is in every list before all else, whatever it is. */
  readonly strange: unknown[] = []
  readonly #objects = new Map<string, { kind: Kind; object: Stored }>()
  readonly #watchers = new Set<{ query: Query; response: ServerResponse }>()
  readonly #close: () => Promise<void>
  #version = 100
  #oldest = 0

  private constructor(url: string, close: () => Promise<void>) {
    this.url = url
    this.#close = close
  }

  static async start(): Promise<KubeApi> {
    const server = createServer((request, response) => api.#answer(request, response))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const address = server.address()
    if (address === null || typeof address === 'string') throw new Error('no port')
    const api: KubeApi = new KubeApi(`http://127.0.0.1:${address.port}`, async () => {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    })
    return api
  }

  /** Writes a kubeconfig that leads here, for a user who has the token unless told otherwise. */
  writeKubeconfig(path: string, user: object = { token: KUBE_TOKEN }): void {
    const config = {
      apiVersion: 'v1',
      kind: 'Config',
      // The client takes plain HTTP only from those who say that they do not check certificates.
      clusters: [{ name: 'c', cluster: { server: this.url, 'insecure-skip-tls-verify': true } }],
      users: [{ name: 'u', user }],
      contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
      'current-context': 'x',
    }
    // YAML is a superset of JSON.
    writeFileSync(path, JSON.stringify(config))
  }

  /** Makes or changes an object. */
  put(kind: Kind, object: KubeObject): void {
    const { namespace, name } = object.metadata
    const key = `${kind}/${namespace}/${name}`
    const type = this.#objects.has(key) ? 'MODIFIED' : 'ADDED'
    const metadata = { ...object.metadata, resourceVersion: String(++this.#version) }
    const stored = { ...object, metadata }
    this.#objects.set(key, { kind, object: stored })
    this.#tell(kind, { type, object: stored })
  }

  remove(kind: Kind, namespace: string, name: string): void {
    const key = `${kind}/${namespace}/${name}`
    const found = this.#objects.get(key)
    if (found === undefined) throw new Error(`there is no ${key}`)
    this.#objects.delete(key)
    const metadata = { ...found.object.metadata, resourceVersion: String(++this.#version) }
    this.#tell(kind, { type: 'DELETED', object: { ...found.object, metadata } })
  }

  /** Tells all who watch of anything. */
  tell(type: string, object: unknown): void {
    for (const { response } of this.#watchers) write(response, { type, object })
  }

  /** Ends every watch, as a server that restarts does; with `forget`, what happened before is gone. */
  async disconnect(forget = false): Promise<void> {
    if (forget) this.#oldest = ++this.#version
    for (const { response } of this.#watchers) response.end()
    this.#watchers.clear()
    await setImmediate()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close()
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    this.asked.push(request.url ?? '')
    const url = new URL(request.url ?? '', this.url)
    const found =
      /^\/api\/v1(?:\/namespaces\/([^/]+))?\/(secrets|pods)$/.exec(url.pathname) ??
      /^\/apis\/discovery\.k8s\.io\/v1\/namespaces\/([^/]+)\/(endpointslices)$/.exec(url.pathname)
    const code =
      this.failing ??
      (found === null ? 404 : request.headers.authorization === `Bearer ${KUBE_TOKEN}` ? 200 : 401)
    if (code !== 200) {
      send(response, code, { kind: 'Status', apiVersion: 'v1', status: 'Failure', code })
      return
    }
    const query = {
      kind: found?.[2] as Kind,
      namespace: found?.[1],
      field: (url.searchParams.get('fieldSelector') ?? '').split('='),
      label: (url.searchParams.get('labelSelector') ?? '').split('='),
    }
    if (url.searchParams.get('watch') === 'true') {
      this.#watch(query, Number(url.searchParams.get('resourceVersion')), response)
      return
    }
    const items = [...this.#objects.values()]
      .filter(({ kind, object }) => isWanted(query, kind, object))
      .map(({ object }) => object)
    const resourceVersion = String(this.#version)
    send(response, 200, {
      apiVersion: 'v1',
      kind: 'List',
      metadata: { resourceVersion },
      items: [...this.strange, ...items],
    })
  }

  #watch(query: Query, since: number, response: ServerResponse): void {
    response.writeHead(200, { 'content-type': 'application/json' })
    response.flushHeaders()
    if (since < this.#oldest) {
      const object = { kind: 'Status', status: 'Failure', reason: 'Expired', code: 410 }
      response.end(`${JSON.stringify({ type: 'ERROR', object })}\n`)
      return
    }
    for (const { kind, object } of this.#objects.values()) {
      const isNew = Number(object.metadata.resourceVersion) > since
      if (isNew && isWanted(query, kind, object)) write(response, { type: 'MODIFIED', object })
    }
    const watcher = { query, response }
    this.#watchers.add(watcher)
    response.on('close', () => this.#watchers.delete(watcher))
  }

  #tell(kind: Kind, event: WatchEvent): void {
    for (const { query, response } of this.#watchers) {
      if (isWanted(query, kind, event.object)) write(response, event)
    }
  }
}

function isWanted({ kind, namespace, field, label }: Query, of: Kind, object: KubeObject): boolean {
  if (kind !== of || (namespace !== undefined && namespace !== object.metadata.namespace)) {
    return false
  }
  const [key = '', wanted] = label
  if (key !== '' && object.metadata.labels?.[key] !== wanted) return false
  const [name = '', value] = field
  const found = name
    .split('.')
    .reduce<unknown>((at, part) => (at as Record<string, unknown> | undefined)?.[part], object)
  return name === '' || found === value
}

function write(
  response: ServerResponse,
  event: { readonly type: string; readonly object: unknown },
): void {
  response.write(`${JSON.stringify(event)}\n`)
}

function send(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}
