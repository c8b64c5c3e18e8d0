import { fromBinary } from '@bufbuild/protobuf'
import type { KubernetesObject, V1Namespace } from '@kubernetes/client-node'
import { PodSchema } from '../../proto/messages/ipdr/deploy_pb.js'
import type { Log } from '../../snapshotter/log.ts'
import {
  type Cluster,
  ClusterError,
  DEPLOYMENT,
  type Kind,
  NAMESPACE,
  OURS,
  SECRET,
  SERVICE,
  STATEFUL_SET,
} from './cluster.ts'
import { RECORD_NAME, readRecord, writeRecord } from './deployment-record.ts'
import type { HostClaims } from './host-claims.ts'
import { httpPorts } from './objects/request-scaling.ts'
import { PodError, type PodLimits, parsePod } from './parse-pod.ts'
import type { PodIdentity, PodSpec } from './pod-spec.ts'
import type { PodTurns } from './pod-turns.ts'

/** On the namespace of every pod: how far its deployment is. */
export const STATE_LABEL = 'ipdr.dev/state'

/** What belongs to a pod may be deleted with a change of it, but for volumes: whoever mistypes a name keeps the data. */
const PRUNED: readonly Kind[] = [
  DEPLOYMENT,
  STATEFUL_SET,
  SERVICE,
  SECRET,
  { apiVersion: 'networking.k8s.io/v1', kind: 'NetworkPolicy' },
  { apiVersion: 'networking.k8s.io/v1', kind: 'Ingress' },
  { apiVersion: 'gateway.networking.k8s.io/v1', kind: 'HTTPRoute' },
  { apiVersion: 'http.keda.sh/v1alpha1', kind: 'HTTPScaledObject' },
]

export type Mode = 'either' | 'create' | 'update'

export type Applied = {
  readonly objects: number
  readonly deleted: number
  readonly generation: number
}

type Parts = {
  readonly cluster: Cluster
  readonly turns: PodTurns
  readonly hosts: HostClaims
  readonly limits: PodLimits
  /** What a pod is in the cluster, in the order in which it is made; the namespace first. */
  readonly objectsOf: (
    spec: PodSpec,
    identity: PodIdentity,
    options: { readonly isNew: boolean },
  ) => KubernetesObject[]
  readonly log: Log
}

/**
 * The pods of the cluster. What was asked for is written down in the pod's namespace before anything else, so that a deployment that breaks
 * off at any step is gone on with, by this agent or another; one that the cluster refuses is taken back to what was there before.
 */
export class Deployments {
  readonly #parts: Parts

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Checks a pod without doing anything. Throws PodError. */
  check(pod: Uint8Array): PodSpec {
    return parsePod(fromBinary(PodSchema, pod), this.#parts.limits)
  }

  /**
   * Has the cluster be what `pod`, an ipdr.deploy.v1.Pod in binary, says; resolves when all objects are there. Rejects with PodError and
   * ClusterError; UNAVAILABLE means that it goes on by itself once the cluster can be asked, all else that nothing has changed.
   */
  async deploy(identity: PodIdentity, pod: Uint8Array, mode: Mode): Promise<Applied> {
    const spec = this.check(pod)
    const { namespace } = identity
    return await this.#parts.turns.run(namespace, () => this.#deploy(identity, { pod, spec, mode }))
  }

  /** Begins to delete a pod and everything in its namespace. False: there is none. */
  async delete(namespace: string): Promise<boolean> {
    return await this.#parts.turns.run(namespace, async () => {
      const { cluster } = this.#parts
      const ref = { ...NAMESPACE, metadata: { name: namespace } }
      const found = await cluster.read<V1Namespace>(ref)
      if (found === undefined) return false
      await cluster.delete(ref, found.metadata?.uid)
      return true
    })
  }

  /** What is asked for now; undefined: nothing, or by somebody else. */
  async specOf(namespace: string): Promise<PodSpec | undefined> {
    const record = await readRecord(this.#parts.cluster, namespace)
    return record && this.check(record.wanted)
  }

  /** Goes on with deployments that broke off. Resolves to how many. What cannot be gone on with is logged, and left. */
  async resume(): Promise<number> {
    const { cluster, log } = this.#parts
    const broken = await cluster.list<V1Namespace>(NAMESPACE, {
      labels: { [STATE_LABEL]: 'applying' },
    })
    let resumed = 0
    for (const found of broken) {
      const identity = identityOf(found)
      if (identity === undefined || found.metadata?.deletionTimestamp !== undefined) continue
      try {
        const isDone = await this.#parts.turns.run(identity.namespace, () => this.#resume(identity))
        if (isDone) resumed++
      } catch (error) {
        const reason = error instanceof Error ? error.message : String(error)
        log.warn(
          { namespace: identity.namespace, reason },
          `a deployment that broke off cannot be gone on with: ${reason}`,
        )
      }
    }
    return resumed
  }

  async #deploy(
    identity: PodIdentity,
    { pod, spec, mode }: { readonly pod: Uint8Array; readonly spec: PodSpec; readonly mode: Mode },
  ): Promise<Applied> {
    const { cluster } = this.#parts
    const { namespace } = identity
    const found = await cluster.read<V1Namespace>({ ...NAMESPACE, metadata: { name: namespace } })
    if (found?.metadata?.deletionTimestamp !== undefined) {
      throw new PodError(
        'ABORTED',
        `pod ${namespace} is being deleted; deploy it again when it is gone`,
      )
    }
    if (found === undefined && mode === 'update') {
      throw new PodError('NOT_FOUND', `there is no pod ${namespace} here; deploy it first`)
    }
    if (found !== undefined && mode === 'create') {
      throw new PodError('ALREADY_EXISTS', `pod ${namespace} is here already; update it`)
    }
    const before = found && (await readRecord(cluster, namespace))
    const isNew = before?.applied === undefined
    const generation = (before?.generation ?? 0) + 1
    const applied = before?.applied
    try {
      return await this.#apply(identity, { pod, spec, applied, generation, isNew })
    } catch (error) {
      if (!(error instanceof ClusterError || error instanceof PodError)) throw error
      // What is written down is gone on with.
      if (error.code === 'UNAVAILABLE' || error.code === 'ABORTED') throw error
      await this.#goBack(identity, { applied, wasThere: found !== undefined, generation })
      throw error
    }
  }

  /** Step by step, each of which may be done again. */
  async #apply(
    identity: PodIdentity,
    {
      pod,
      spec,
      applied,
      generation,
      isNew,
    }: {
      readonly pod: Uint8Array
      readonly spec: PodSpec
      readonly applied: Uint8Array | undefined
      readonly generation: number
      readonly isNew: boolean
    },
  ): Promise<Applied> {
    const { cluster, hosts, objectsOf } = this.#parts
    const { namespace } = identity
    const [first, ...objects] = objectsOf(spec, identity, { isNew })
    if (first?.kind !== NAMESPACE.kind)
      throw new Error('the first object of a pod is its namespace')
    const owner = await cluster.apply<V1Namespace>(withState(first, 'applying'))
    await writeRecord(cluster, namespace, { wanted: pod, applied, generation })
    const names = httpPorts(spec).map(({ host }) => host)
    for (const host of names) await hosts.claim(host, owner)
    for (const object of objects) await cluster.apply(object)
    const deleted = await this.#prune(namespace, objects)
    await hosts.releaseOthers(owner, names)
    await writeRecord(cluster, namespace, { wanted: pod, applied: pod, generation })
    await cluster.apply(withState(first, 'applied'))
    return { objects: objects.length + 1, deleted, generation }
  }

  async #resume(identity: PodIdentity): Promise<boolean> {
    const { cluster } = this.#parts
    const { namespace } = identity
    const found = await cluster.read<V1Namespace>({ ...NAMESPACE, metadata: { name: namespace } })
    // Somebody was faster.
    if (found?.metadata?.labels?.[STATE_LABEL] !== 'applying') return false
    const record = await readRecord(cluster, namespace)
    if (record === undefined) {
      // It broke off before it was written down: nobody was told anything, and nothing else is there.
      await this.#goBack(identity, { applied: undefined, wasThere: false, generation: 0 })
      return true
    }
    const { wanted: pod, applied, generation } = record
    try {
      const spec = this.check(pod)
      await this.#apply(identity, { pod, spec, applied, generation, isNew: applied === undefined })
    } catch (error) {
      if (error instanceof ClusterError && error.code === 'UNAVAILABLE') throw error
      await this.#goBack(identity, { applied, wasThere: applied !== undefined, generation })
      throw error
    }
    return true
  }

  /** To what was there before a deployment that the cluster refused. */
  async #goBack(
    identity: PodIdentity,
    {
      applied,
      wasThere,
      generation,
    }: {
      readonly applied: Uint8Array | undefined
      readonly wasThere: boolean
      readonly generation: number
    },
  ): Promise<void> {
    const { cluster, log } = this.#parts
    const { namespace } = identity
    try {
      if (applied !== undefined) {
        const spec = this.check(applied)
        await this.#apply(identity, { pod: applied, spec, applied, generation, isNew: false })
      } else if (!wasThere) {
        const ref = { ...NAMESPACE, metadata: { name: namespace } }
        const found = await cluster.read<V1Namespace>(ref)
        if (found !== undefined) await cluster.delete(ref, found.metadata?.uid)
      }
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      log.error({ namespace, reason }, `pod ${namespace} cannot be taken back: ${reason}`)
    }
  }

  async #prune(namespace: string, wanted: readonly KubernetesObject[]): Promise<number> {
    const { cluster } = this.#parts
    const kept = new Set(wanted.map(({ kind, metadata }) => `${kind}/${metadata?.name}`))
    kept.add(`${SECRET.kind}/${RECORD_NAME}`)
    let deleted = 0
    for (const kind of PRUNED) {
      const found = await cluster.list<KubernetesObject>(kind, { namespace, labels: OURS })
      for (const { metadata } of found) {
        const name = metadata?.name ?? ''
        if (kept.has(`${kind.kind}/${name}`)) continue
        if (await cluster.delete({ ...kind, metadata: { namespace, name } }, metadata?.uid))
          deleted++
      }
    }
    return deleted
  }
}

/** Whose a namespace of ours is; undefined for all others. */
export function identityOf({ metadata }: V1Namespace): PodIdentity | undefined {
  const publisher = metadata?.annotations?.['ipdr.dev/publisher'] ?? ''
  const podId = metadata?.annotations?.['ipdr.dev/pod-id'] ?? ''
  if (!/^0x[0-9a-f]{40}$/.test(publisher) || !/^0x[0-9a-f]{64}$/.test(podId)) return undefined
  return {
    publisher: publisher as `0x${string}`,
    podId: podId as `0x${string}`,
    namespace: metadata?.name ?? '',
  }
}

function withState<T extends KubernetesObject>(object: T, state: 'applying' | 'applied'): T {
  const metadata: object = object.metadata ?? {}
  const labels = { ...object.metadata?.labels, [STATE_LABEL]: state }
  return { ...object, metadata: { ...metadata, labels } }
}
