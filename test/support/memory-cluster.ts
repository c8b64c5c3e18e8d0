import type { KubernetesObject } from '@kubernetes/client-node'
import {
  type Cluster,
  ClusterError,
  type DeploymentVersion,
  type Kind,
  type LogOptions,
  type Ref,
  type ReplicaToken,
} from '../../agent/deploy/cluster.ts'

type Stored = KubernetesObject & {
  metadata: NonNullable<KubernetesObject['metadata']> & { name: string }
}

/** What a token says, and until when, in ms since 1970. */
export type MemoryToken = ReplicaToken & { readonly audience: string; readonly expiresAtMs: number }

/** Thrown in place of an answer: the process is gone. */
export class Crash extends Error {}

/**
 * A cluster in memory: names, resource versions, preconditions, labels, and namespaces that take all that is in them along. It checks nothing
 * that an API server checks; what a real one does is tried in test/peers and test/kubernetes.
 */
export class MemoryCluster implements Cluster {
  /** Calls that change something, in order, as `apply Deployment tpod-dep-…`. */
  readonly calls: string[] = []
  /** Called before each of them with its number, from 1 on, and its words; throws to have it fail. */
  before: (call: number, words: string) => void = () => undefined
  /** As `before`, once it is done. */
  after: (call: number, words: string) => void = () => undefined
  /** Lines of any container. */
  lines: readonly string[] = []
  /** Those that the API has given out, by their text. */
  readonly tokens: Map<string, MemoryToken> = new Map()
  /** How often it was asked about one. */
  reviews = 0
  /** Namespaces that are deleted stay, terminating, until `finish`. */
  hasFinalizers = false
  readonly #objects = new Map<string, Stored>()
  #version = 0

  /** Objects of a kind, or all, as `Kind namespace/name`. */
  names(kind?: string): string[] {
    return [...this.#objects.values()]
      .filter((object) => kind === undefined || object.kind === kind)
      .map(({ kind, metadata }) => `${kind} ${metadata.namespace ?? ''}/${metadata.name}`)
      .toSorted()
  }

  object(kind: string, name: string): KubernetesObject | undefined {
    for (const object of this.#objects.values()) {
      if (object.kind === kind && object.metadata.name === name) return structuredClone(object)
    }
    return undefined
  }

  /** Changes an object, as a controller does. */
  set(kind: string, name: string, change: (object: Record<string, unknown>) => void): void {
    for (const object of this.#objects.values()) {
      if (object.kind !== kind || object.metadata.name !== name) continue
      change(object as unknown as Record<string, unknown>)
      object.metadata.resourceVersion = String(++this.#version)
      return
    }
    throw new Error(`there is no ${kind} ${name}`)
  }

  /** Takes away what finalizers had kept. */
  finish(name: string): void {
    this.#remove(`Namespace//${name}`, name)
  }

  async apply<T extends KubernetesObject>(object: T): Promise<T> {
    return this.#change(`apply ${wordsOf(object)}`, () => {
      const old = this.#objects.get(keyOf(object))
      return this.#put(object, old)
    }) as T
  }

  async create<T extends KubernetesObject>(object: T): Promise<T | undefined> {
    if (this.#objects.has(keyOf(object))) return undefined
    return this.#change(`create ${wordsOf(object)}`, () => this.#put(object, undefined)) as T
  }

  async replace<T extends KubernetesObject>(object: T): Promise<T | undefined> {
    const old = this.#objects.get(keyOf(object))
    const version = object.metadata?.resourceVersion
    if (old === undefined || (version !== undefined && version !== old.metadata.resourceVersion)) {
      return undefined
    }
    return this.#change(`replace ${wordsOf(object)}`, () => this.#put(object, old)) as T
  }

  async read<T extends KubernetesObject>(ref: Ref): Promise<T | undefined> {
    const found = this.#objects.get(keyOf(ref))
    return found && (structuredClone(found) as unknown as T)
  }

  async list<T extends KubernetesObject>(
    { kind }: Kind,
    { namespace, labels = {} }: { namespace?: string; labels?: Readonly<Record<string, string>> },
  ): Promise<T[]> {
    return [...this.#objects.values()]
      .filter(
        (object) =>
          object.kind === kind &&
          (namespace === undefined || object.metadata.namespace === namespace) &&
          Object.entries(labels).every(([name, value]) => object.metadata.labels?.[name] === value),
      )
      .map((object) => structuredClone(object) as unknown as T)
  }

  async delete(ref: Ref, uid?: string): Promise<boolean> {
    const key = keyOf(ref)
    const found = this.#objects.get(key)
    if (found === undefined || (uid !== undefined && found.metadata.uid !== uid)) return false
    this.#change(`delete ${wordsOf(ref)}`, () => {
      if (ref.kind === 'Namespace' && this.hasFinalizers) {
        found.metadata.deletionTimestamp ??= new Date(0)
      } else {
        this.#remove(key, ref.kind === 'Namespace' ? ref.metadata.name : undefined)
      }
      return found
    })
    return true
  }

  async scale(
    { namespace, name, resourceVersion }: DeploymentVersion,
    replicas: number,
  ): Promise<boolean> {
    const old = this.#objects.get(`Deployment/${namespace}/${name}`)
    if (old?.metadata.resourceVersion !== resourceVersion) return false
    const { spec } = old as { spec?: object }
    const scaled: KubernetesObject = Object.assign(structuredClone(old), {
      spec: { ...spec, replicas },
    })
    this.#change(`scale ${wordsOf(scaled)} ${replicas}`, () => this.#put(scaled, old))
    return true
  }

  async reviewToken(text: string, audience: string): Promise<ReplicaToken | undefined> {
    this.reviews++
    const token = this.tokens.get(text)
    if (token?.audience !== audience || token.expiresAtMs <= Date.now()) return undefined
    const { namespace, account, pod } = token
    return { namespace, account, pod }
  }

  async *logs(
    _pod: { readonly namespace: string; readonly name: string },
    _options: LogOptions,
    _signal: AbortSignal,
  ): AsyncGenerator<string> {
    yield* this.lines
  }

  #change(words: string, change: () => KubernetesObject): KubernetesObject {
    this.calls.push(words)
    const call = this.calls.length
    this.before(call, words)
    const changed = structuredClone(change())
    this.after(call, words)
    return changed
  }

  #put(object: KubernetesObject, old: Stored | undefined): Stored {
    const { namespace } = object.metadata ?? {}
    const place = namespace === undefined ? undefined : this.#objects.get(`Namespace//${namespace}`)
    if (namespace !== undefined && namespace !== 'ipdr-system') {
      if (place === undefined) {
        throw new ClusterError('NOT_FOUND', `namespaces "${namespace}" not found`, { status: 404 })
      }
      if (place.metadata.deletionTimestamp !== undefined && old === undefined) {
        throw new ClusterError('PERMISSION_DENIED', `${namespace} is being terminated`, {
          status: 403,
        })
      }
    }
    const version = String(++this.#version)
    const stored = {
      ...structuredClone(object),
      metadata: {
        creationTimestamp: new Date(0),
        ...(structuredClone(object.metadata) as object),
        name: object.metadata?.name ?? '',
        uid: old?.metadata.uid ?? `uid-${version}`,
        resourceVersion: version,
        ...(old?.metadata.deletionTimestamp !== undefined && {
          deletionTimestamp: old.metadata.deletionTimestamp,
        }),
      },
    }
    this.#objects.set(keyOf(object), stored)
    return stored
  }

  #remove(key: string, namespace: string | undefined): void {
    const { uid } = this.#objects.get(key)?.metadata ?? {}
    this.#objects.delete(key)
    for (const [other, { metadata }] of this.#objects) {
      const isInside = namespace !== undefined && metadata.namespace === namespace
      const isOwned = metadata.ownerReferences?.some((owner) => owner.uid === uid) === true
      if (isInside || isOwned) this.#objects.delete(other)
    }
  }
}

function keyOf({ kind, metadata }: KubernetesObject): string {
  return `${kind}/${metadata?.namespace ?? ''}/${metadata?.name}`
}

function wordsOf({ kind, metadata }: KubernetesObject): string {
  return `${kind} ${metadata?.name}`
}
