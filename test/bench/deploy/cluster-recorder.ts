import { AsyncLocalStorage } from 'node:async_hooks'
import { subscribe } from 'node:diagnostics_channel'
import type { KubernetesObject } from '@kubernetes/client-node'
import type { Cluster } from '../../../agent/deploy/cluster.ts'

/** A stretch of time, in ms since the process began. */
export type Stretch = { readonly from: number; readonly to: number }

/** One thing that was asked of the cluster. */
export type ClusterCall = {
  /** As `apply Deployment`. */
  readonly words: string
  /** Until the answer was understood. */
  whole: Stretch
  /** Its requests, each from the first byte that was sent to the last one that came: some ask first what there is. */
  readonly requests: Stretch[]
}

/** What one change of a pod asked of the cluster: from the lease that it took to the one that it gave back. */
export type RecordedChange = { readonly namespace: string; readonly calls: ClusterCall[] }

/** Notes how long each answer of a cluster took, by the pod that it was asked for. */
export class ClusterRecorder {
  /** As the one that is listened to. */
  readonly cluster: Cluster
  readonly #current = new AsyncLocalStorage<ClusterCall>()
  readonly #open = new Map<string, RecordedChange>()
  #done: RecordedChange[] = []

  constructor(cluster: Cluster) {
    this.cluster = new Proxy(cluster, {
      get: (target, name: keyof Cluster) => {
        const asked = target[name] as (...words: unknown[]) => Promise<unknown>
        return (...words: unknown[]) => {
          const ask = (): Promise<unknown> => Reflect.apply(asked, target, words)
          // Lines come as long as somebody reads them.
          return name === 'logs' ? ask() : this.#noted(name, words, ask)
        }
      },
    })
    this.#watchRequests()
  }

  /** Changes that have ended since the last call. */
  take(): RecordedChange[] {
    const done = this.#done
    this.#done = []
    return done
  }

  async #noted(
    verb: string,
    words: readonly unknown[],
    ask: () => Promise<unknown>,
  ): Promise<unknown> {
    const { kind = '', metadata } = words[0] as KubernetesObject
    if (kind === 'Lease' && verb === 'create') {
      const namespace = metadata?.name ?? ''
      this.#open.set(namespace, { namespace, calls: [] })
    }
    // Leases and claims lie elsewhere, and name it.
    const text = JSON.stringify(words)
    const namespace = [...this.#open.keys()].find((open) => text.includes(open)) ?? ''
    const change = this.#open.get(namespace)
    const from = performance.now()
    const call: ClusterCall = { words: `${verb} ${kind}`, whole: { from, to: from }, requests: [] }
    change?.calls.push(call)
    try {
      return await this.#current.run(call, ask)
    } finally {
      call.whole = { from, to: performance.now() }
      if (kind === 'Lease' && verb === 'delete' && change !== undefined) {
        this.#open.delete(namespace)
        this.#done.push(change)
      }
    }
  }

  /** What undici tells of every request of the process: https://undici.nodejs.org/#/docs/api/DiagnosticsChannel. */
  #watchRequests(): void {
    const calls = new WeakMap<object, { readonly call: ClusterCall; sentAt: number }>()
    subscribe('undici:request:create', (message) => {
      const call = this.#current.getStore()
      if (call !== undefined) calls.set(requestOf(message), { call, sentAt: performance.now() })
    })
    subscribe('undici:client:sendHeaders', (message) => {
      const found = calls.get(requestOf(message))
      if (found !== undefined) found.sentAt = performance.now()
    })
    subscribe('undici:request:trailers', (message) => {
      const found = calls.get(requestOf(message))
      if (found === undefined) return
      found.call.requests.push({ from: found.sentAt, to: performance.now() })
    })
  }
}

function requestOf(message: unknown): object {
  return (message as { request: object }).request
}
