import { create } from '@bufbuild/protobuf'
import type {
  CoreV1Event,
  V1ContainerStatus,
  V1Deployment,
  V1Namespace,
  V1Pod,
  V1Service,
  V1StatefulSet,
} from '@kubernetes/client-node'
import PQueue from 'p-queue'
import { hexToBytes } from 'viem'
import {
  type ContainerStatus,
  ContainerStatusSchema,
  type PodEvent,
  PodEventSchema,
  type PodSummary,
  PodSummarySchema,
  State,
} from '../../proto/messages/ipdr/deploy_pb.js'
import {
  type Cluster,
  DEPLOYMENT,
  EVENT,
  NAMESPACE,
  OURS,
  POD,
  SERVICE,
  STATEFUL_SET,
} from './cluster.ts'
import { identityOf, STATE_LABEL } from './deployments.ts'
import type { PodIdentity } from './pod-spec.ts'

/** Of what Kubernetes says of a container or an event. */
const MESSAGE_CHARS_MAX = 1_000

/** Events of one namespace that are told; the API keeps them for an hour. */
const EVENTS_MAX = 500

/** Pods of a list that are looked at side by side; each look is some five requests. */
const LOOKED_AT_ONCE = 4

/** Reasons of Kubernetes for a container that does not come up by itself. */
const FAILING = new Set([
  'CrashLoopBackOff',
  'CreateContainerConfigError',
  'CreateContainerError',
  'ErrImagePull',
  'ErrImageNeverPull',
  'ImagePullBackOff',
  'InvalidImageName',
  'RunContainerError',
])

export type PodState = {
  readonly summary: PodSummary
  readonly containers: readonly ContainerStatus[]
  readonly services: readonly V1Service[]
  /** Why it is not ready, in words; empty if it is. */
  readonly reason: string
}

/** How a pod is; undefined if there is none. Rejects with ClusterError. */
export async function podState(cluster: Cluster, namespace: string): Promise<PodState | undefined> {
  const found = await cluster.read<V1Namespace>({ ...NAMESPACE, metadata: { name: namespace } })
  const identity = found && identityOf(found)
  if (found === undefined || identity === undefined) return undefined
  const [workload, pods, services] = await Promise.all([
    workloadOf(cluster, namespace),
    cluster.list<V1Pod>(POD, { namespace }),
    cluster.list<V1Service>(SERVICE, { namespace, labels: OURS }),
  ])
  const containers = pods.flatMap(containersOf)
  const summary = summaryOf(found, identity, workload, containers)
  return { summary, containers, services, reason: reasonOf(summary.state, pods, containers) }
}

/** A publisher's pods, in no order. Rejects with ClusterError. */
export async function podsOf(cluster: Cluster, publisher: `0x${string}`): Promise<PodSummary[]> {
  const found = await cluster.list<V1Namespace>(NAMESPACE, {
    labels: { 'ipdr.dev/publisher': publisher },
  })
  const queue = new PQueue({ concurrency: LOOKED_AT_ONCE })
  const states = await queue.addAll(
    found.map(
      ({ metadata }) =>
        () =>
          podState(cluster, metadata?.name ?? ''),
    ),
  )
  return states.flatMap((state) => (state === undefined ? [] : [state.summary]))
}

/** What happened to a pod, the oldest first. */
export async function podEvents(cluster: Cluster, namespace: string): Promise<PodEvent[]> {
  const events = await cluster.list<CoreV1Event>(EVENT, { namespace })
  return events
    .map((event) =>
      create(PodEventSchema, {
        time: secondsOf(event.lastTimestamp ?? event.eventTime ?? event.metadata.creationTimestamp),
        isWarning: event.type === 'Warning',
        reason: event.reason ?? '',
        message: (event.message ?? '').slice(0, MESSAGE_CHARS_MAX),
        object: `${event.involvedObject.kind}/${event.involvedObject.name}`,
      }),
    )
    .toSorted((a, b) => Number(a.time - b.time))
    .slice(-EVENTS_MAX)
}

type Workload = V1Deployment | V1StatefulSet

async function workloadOf(cluster: Cluster, namespace: string): Promise<Workload | undefined> {
  const [deployments, sets] = await Promise.all([
    cluster.list<V1Deployment>(DEPLOYMENT, { namespace, labels: OURS }),
    cluster.list<V1StatefulSet>(STATEFUL_SET, { namespace, labels: OURS }),
  ])
  return deployments[0] ?? sets[0]
}

function summaryOf(
  { metadata }: V1Namespace,
  { podId, namespace }: PodIdentity,
  workload: Workload | undefined,
  containers: readonly ContainerStatus[],
): PodSummary {
  const wanted = workload?.spec?.replicas ?? 0
  const ready = workload?.status?.readyReplicas ?? 0
  const isDeleting = metadata?.deletionTimestamp !== undefined
  const isApplying = metadata?.labels?.[STATE_LABEL] === 'applying' || workload === undefined
  return create(PodSummarySchema, {
    podId: hexToBytes(podId),
    name: metadata?.annotations?.['ipdr.dev/name'] ?? '',
    namespace,
    state: isDeleting
      ? State.DELETING
      : isApplying
        ? State.APPLYING
        : stateOf(workload, { wanted, ready, containers }),
    replicasReady: ready,
    replicasWanted: wanted,
    createdAt: secondsOf(metadata?.creationTimestamp),
  })
}

function stateOf(
  { metadata, status }: Workload,
  {
    wanted,
    ready,
    containers,
  }: {
    readonly wanted: number
    readonly ready: number
    readonly containers: readonly ContainerStatus[]
  },
): State {
  const isSeen = (status?.observedGeneration ?? 0) >= (metadata?.generation ?? 0)
  if (wanted === 0) return isSeen && ready === 0 ? State.ASLEEP : State.STARTING
  const updated = status?.updatedReplicas ?? 0
  // As kubectl has it: while there are old replicas, it may be these that are ready.
  const isNew = isSeen && updated >= wanted && (status?.replicas ?? 0) <= updated
  if (isNew && ready >= wanted) return State.READY
  return containers.some(({ reason }) => FAILING.has(reason)) ? State.FAILING : State.STARTING
}

function containersOf({ metadata, spec, status }: V1Pod): ContainerStatus[] {
  const replica = metadata?.name ?? ''
  return (spec?.containers ?? []).map(({ name, image }) => {
    const found = status?.containerStatuses?.find((one) => one.name === name)
    const { reason, message } = waitOf(found)
    return create(ContainerStatusSchema, {
      name,
      replica,
      image: image ?? '',
      ready: found?.ready ?? false,
      restarts: found?.restartCount ?? 0,
      reason: reason ?? '',
      message: (message ?? '').slice(0, MESSAGE_CHARS_MAX),
    })
  })
}

function waitOf(status: V1ContainerStatus | undefined): {
  readonly reason?: string | undefined
  readonly message?: string | undefined
} {
  const { waiting, terminated } = status?.state ?? {}
  return waiting ?? terminated ?? {}
}

function reasonOf(
  state: State,
  pods: readonly V1Pod[],
  containers: readonly ContainerStatus[],
): string {
  if (state === State.READY || state === State.ASLEEP) return ''
  const failing = containers.find(({ reason }) => FAILING.has(reason))
  if (failing !== undefined) return `${failing.name}: ${failing.reason}: ${failing.message}`
  const unscheduled = pods
    .flatMap(({ status }) => status?.conditions ?? [])
    .find(({ type, status }) => type === 'PodScheduled' && status === 'False')
  if (unscheduled !== undefined) return `no node takes it: ${unscheduled.message ?? ''}`
  const waiting = containers.find(({ reason }) => reason !== '')
  return waiting === undefined ? '' : `${waiting.name}: ${waiting.reason}`
}

/** The client makes dates of what it knows the kind of, and leaves text in all else: in events, too. */
function secondsOf(time: Date | string | undefined): bigint {
  const ms = new Date(time ?? 0).getTime()
  return Number.isNaN(ms) ? 0n : BigInt(Math.floor(ms / 1_000))
}
