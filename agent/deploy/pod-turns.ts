import { randomUUID } from 'node:crypto'
import { setTimeout } from 'node:timers/promises'
import { type V1Lease, V1MicroTime } from '@kubernetes/client-node'
import PQueue from 'p-queue'
import type { Log } from '../../snapshotter/log.ts'
import { type Cluster, ClusterError, LEASE, OURS } from './cluster.ts'

/** How long a lease holds without being renewed, in seconds: an agent that was killed is waited for that long. */
const LEASE_SECONDS = 30

/** How often it is renewed, in ms: a third, so that two renewals may fail. */
const RENEW_MS = 10_000

/** How often another agent's lease is looked at, in ms. */
const LOOK_MS = 500

/** How long somebody waits for another agent, in ms. 60 s: a lease whose holder is gone, and a deployment before us. */
const WAIT_MS_MAX = 60_000

/** Turns at once, of all pods. 16: a deployment waits for some ten answers of the API one after the other. */
const TURNS_AT_ONCE = 16

/** Turns that are waited for; each holds a pod of some KiB, 400 at most. */
const WAITING_MAX = 4_096

/** One at a time for each pod, of all agents of the cluster: by a Lease in the agents' own namespace. */
export class PodTurns {
  readonly #namespace: string
  readonly #cluster: Cluster
  readonly #log: Pick<Log, 'warn'>
  /** Ours alone: an agent that starts again waits for what the one before held. */
  readonly #holder = `ipdr-agent-${randomUUID()}`
  readonly #tails = new Map<string, Promise<void>>()
  readonly #queue = new PQueue({ concurrency: TURNS_AT_ONCE })
  #waiting = 0

  constructor(
    namespace: string,
    { cluster, log }: { readonly cluster: Cluster; readonly log: Pick<Log, 'warn'> },
  ) {
    this.#namespace = namespace
    this.#cluster = cluster
    this.#log = log
  }

  /** Turns that are had or waited for. */
  get waiting(): number {
    return this.#waiting
  }

  /**
   * Runs `work` once nobody else works on `pod`. Rejects with ClusterError ABORTED if another agent does not end, RESOURCE_EXHAUSTED if too
   * many wait.
   */
  async run<T>(pod: string, work: () => Promise<T>): Promise<T> {
    if (this.#waiting >= WAITING_MAX) {
      const message = `${WAITING_MAX} changes of pods are waiting for their turn; try again later`
      throw new ClusterError('RESOURCE_EXHAUSTED', message)
    }
    this.#waiting++
    const before = this.#tails.get(pod) ?? Promise.resolve()
    const done = Promise.withResolvers<void>()
    const tail = before.then(() => done.promise)
    this.#tails.set(pod, tail)
    try {
      // Only then a place among all: those who wait for the same pod take none from others.
      await before
      return await this.#queue.add(() => this.#hold(pod, work))
    } finally {
      this.#waiting--
      done.resolve()
      if (this.#tails.get(pod) === tail) this.#tails.delete(pod)
    }
  }

  async #hold<T>(pod: string, work: () => Promise<T>): Promise<T> {
    await this.#acquire(pod)
    const renewing = setInterval(() => void this.#renew(pod), RENEW_MS)
    try {
      return await work()
    } finally {
      clearInterval(renewing)
      await this.#release(pod)
    }
  }

  async #acquire(pod: string): Promise<void> {
    const giveUpAt = performance.now() + WAIT_MS_MAX
    let seen = { version: undefined as string | undefined, atMs: performance.now() }
    for (;;) {
      if ((await this.#cluster.create(this.#lease(pod))) !== undefined) return
      const lease = await this.#cluster.read<V1Lease>(this.#ref(pod))
      if (lease === undefined) continue
      // By our own clock, as client-go does: those of two nodes may differ.
      const version = lease.metadata?.resourceVersion
      const now = performance.now()
      if (seen.version !== version) seen = { version, atMs: now }
      const isOurs = lease.spec?.holderIdentity === this.#holder
      if (isOurs || now - seen.atMs > LEASE_SECONDS * 1_000) {
        if ((await this.#cluster.replace(this.#lease(pod, lease))) !== undefined) return
        continue
      }
      if (now > giveUpAt) {
        throw new ClusterError(
          'ABORTED',
          'another agent of this cluster is changing the pod; try again in a minute',
          { pod },
        )
      }
      await setTimeout(LOOK_MS)
    }
  }

  async #renew(pod: string): Promise<void> {
    try {
      const lease = await this.#cluster.read<V1Lease>(this.#ref(pod))
      if (lease?.spec?.holderIdentity !== this.#holder) return
      await this.#cluster.replace(this.#lease(pod, lease))
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      this.#log.warn({ pod, reason }, `the lease of ${pod} cannot be renewed: ${reason}`)
    }
  }

  /** If it cannot be given back, it runs out by itself. */
  async #release(pod: string): Promise<void> {
    try {
      await this.#cluster.delete(this.#ref(pod))
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      this.#log.warn({ pod, reason }, `the lease of ${pod} runs out in ${LEASE_SECONDS} s`)
    }
  }

  #ref(pod: string): typeof LEASE & { metadata: { namespace: string; name: string } } {
    return { ...LEASE, metadata: { namespace: this.#namespace, name: pod } }
  }

  #lease(pod: string, old?: V1Lease): V1Lease {
    return {
      ...this.#ref(pod),
      metadata: {
        namespace: this.#namespace,
        name: pod,
        labels: OURS,
        ...(old?.metadata?.resourceVersion !== undefined && {
          resourceVersion: old.metadata.resourceVersion,
        }),
      },
      spec: {
        holderIdentity: this.#holder,
        leaseDurationSeconds: LEASE_SECONDS,
        renewTime: new V1MicroTime(Date.now()),
      },
    }
  }
}
