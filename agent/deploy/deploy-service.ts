import { setTimeout } from 'node:timers/promises'
import { create, fromBinary, type MessageInitShape, toBinary } from '@bufbuild/protobuf'
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect'
import type { V1Namespace } from '@kubernetes/client-node'
import {
  type Address,
  type DeleteProgress,
  DeleteProgressSchema,
  type Deployment,
  Deployment_Mode,
  DeploymentSchema,
  type DeployProgress,
  DeployProgressSchema,
  type DeployService,
  type LogLine,
  type PodEvent,
  PodSchema,
  State,
} from '../../proto/messages/ipdr/deploy_pb.js'
import { SIGNED_CALL_HEADER } from '../client/signed-call.ts'
import type { Admission } from './admission.ts'
import type { Capacity } from './capacity.ts'
import { type Cluster, NAMESPACE } from './cluster.ts'
import type { Deployments, Mode } from './deployments.ts'
import { PodError } from './parse-pod.ts'
import { addressesOf } from './pod-addresses.ts'
import { podLogs } from './pod-logs.ts'
import { namespaceOf } from './pod-namespace.ts'
import type { PodIdentity, PodSpec } from './pod-spec.ts'
import { podEvents, podState, podsOf } from './pod-status.ts'
import type { AuthenticCall } from './signed-calls.ts'

/** A deployment as it was signed. The cluster keeps two of them in one secret of 1 MiB. */
export const PAYLOAD_BYTES_MAX: number = 400 * 1024

/** How often a pod that is on its way is looked at, in ms, for each who watches: more seldom the longer it takes, as each look is some six requests. */
const LOOK_FIRST_MS = 500
const LOOK_LAST_MS = 5_000
const LOOK_GROWTH = 1.2

const UINT64_MAX = 2n ** 64n - 1n

const NO_PAYLOAD = new Uint8Array()

const MODES: Readonly<Record<Deployment_Mode, Mode>> = {
  [Deployment_Mode.UNSPECIFIED]: 'either',
  [Deployment_Mode.CREATE]: 'create',
  [Deployment_Mode.UPDATE]: 'update',
}

/** What of a pod's images has arrived. */
export type Images = {
  /** Bytes on the node that is asked; undefined: nothing is known. */
  arrivalOf(
    image: string,
  ): Promise<{ readonly hereBytes: number; readonly allBytes: number } | undefined>
}

type Parts = {
  readonly admission: Admission
  readonly deployments: Deployments
  readonly cluster: Cluster
  readonly capacity: Capacity
  readonly images: Images
  readonly operator: `0x${string}`
}

/** ipdr.deploy.v1.DeployService: each call is its publisher's, for one pod of his, and a deployment is paid for. */
export function deployService({
  admission,
  deployments,
  cluster,
  capacity,
  images,
  operator,
}: Parts): ServiceImpl<typeof DeployService> {
  const signedFor = async (
    operation: string,
    { requestHeader }: HandlerContext,
    payload: Uint8Array = NO_PAYLOAD,
  ): Promise<AuthenticCall & { readonly identity: PodIdentity }> => {
    const header = requestHeader.get(SIGNED_CALL_HEADER)
    const call = await admission.authenticate(header, { operation, payload })
    const { publisher, podId } = call
    return { ...call, identity: { publisher, podId, namespace: namespaceOf(publisher, podId) } }
  }

  async function* deploy(
    payload: Uint8Array,
    context: HandlerContext,
  ): AsyncGenerator<DeployProgress> {
    if (payload.length > PAYLOAD_BYTES_MAX) {
      throw new PodError(
        'RESOURCE_EXHAUSTED',
        `payload: has ${payload.length} bytes, it may have ${PAYLOAD_BYTES_MAX}`,
      )
    }
    const call = await signedFor('Deploy', context, payload)
    const { identity } = call
    const { pod, mode } = deploymentOf(payload)
    if (pod === undefined) throw new PodError('INVALID_ARGUMENT', 'pod: is missing')
    const bytes = toBinary(PodSchema, pod)
    const spec = deployments.check(bytes)
    const funded = await admission.fundedSeconds({ ...call, operator }, spec, context.signal)
    const seconds = funded ?? 0n
    const { namespace } = identity
    admission.use({ ...call, pod: namespace })
    // Begun before anything is said, and goes on whatever becomes of this stream.
    const applying = deployments.deploy(identity, bytes, MODES[mode])
    applying.catch(() => undefined)
    yield step({
      case: 'accepted',
      value: { namespace, fundedSeconds: seconds > UINT64_MAX ? UINT64_MAX : seconds },
    })
    const applied = await applying
    yield step({
      case: 'applied',
      value: {
        objects: applied.objects,
        deleted: applied.deleted,
        generation: BigInt(applied.generation),
      },
    })
    yield* untilReady(identity, spec, context.signal)
  }

  async function* untilReady(
    { namespace }: PodIdentity,
    spec: PodSpec,
    signal: AbortSignal,
  ): AsyncGenerator<DeployProgress> {
    const news = new EventNews(() => podEvents(cluster, namespace))
    const arrived = new Map<string, number>()
    const pause = pauses()
    while (!signal.aborted) {
      const state = await podState(cluster, namespace)
      if (state === undefined) throw new PodError('ABORTED', 'the pod was deleted meanwhile')
      for (const event of await news.ask()) yield step({ case: 'event', value: event })
      yield* arrivals(spec, arrived)
      const { summary, services } = state
      if (summary.state === State.READY || summary.state === State.ASLEEP) {
        const addresses = addressesOf(spec, services)
        yield step({ case: 'ready', value: { addresses, replicas: summary.replicasReady } })
        return
      }
      await pause(signal)
    }
  }

  /** What has arrived since it was told last; `arrived` remembers it, by container. */
  async function* arrivals(
    { containers }: PodSpec,
    arrived: Map<string, number>,
  ): AsyncGenerator<DeployProgress> {
    for (const { name: container, image } of containers) {
      const arrival = await images.arrivalOf(image)
      if (arrival === undefined || arrived.get(container) === arrival.hereBytes) continue
      arrived.set(container, arrival.hereBytes)
      const [bytesHere, bytesAll] = [BigInt(arrival.hereBytes), BigInt(arrival.allBytes)]
      yield step({ case: 'image', value: { container, image, bytesHere, bytesAll } })
    }
  }

  async function* remove(context: HandlerContext): AsyncGenerator<DeleteProgress> {
    const call = await signedFor('Delete', context)
    const { namespace } = call.identity
    // Whoever has no pod here leaves nothing to be remembered.
    await stateOf(namespace)
    admission.use({ ...call, pod: namespace })
    await deployments.delete(namespace)
    const pause = pauses()
    while (!context.signal.aborted) {
      const found = await cluster.read<V1Namespace>({ ...NAMESPACE, metadata: { name: namespace } })
      if (found?.metadata?.deletionTimestamp === undefined) {
        yield create(DeleteProgressSchema, { done: true })
        return
      }
      const remaining = (found.status?.conditions ?? [])
        .filter(({ type, status }) => type.endsWith('Remaining') && status === 'True')
        .map(({ message }) => message ?? '')
      yield create(DeleteProgressSchema, { remaining })
      await pause(context.signal)
    }
  }

  const stateOf = async (
    namespace: string,
  ): Promise<NonNullable<Awaited<ReturnType<typeof podState>>>> => {
    const state = await podState(cluster, namespace)
    if (state === undefined) throw notFound(namespace)
    return state
  }

  async function* events(follow: boolean, context: HandlerContext): AsyncGenerator<PodEvent> {
    const { namespace } = (await signedFor('Events', context)).identity
    await stateOf(namespace)
    const news = new EventNews(() => podEvents(cluster, namespace))
    const pause = pauses()
    for (;;) {
      yield* await news.ask()
      if (!follow) return
      await pause(context.signal)
      if (context.signal.aborted) return
    }
  }

  return {
    deploy: ({ payload }, context) => deploy(payload, context),
    delete: (_request, context) => remove(context),
    list: async (_request, context) => {
      const { publisher } = await signedFor('List', context)
      return { pods: await podsOf(cluster, publisher) }
    },
    status: async (_request, context) => {
      const { namespace } = (await signedFor('Status', context)).identity
      const { summary, containers, services, reason } = await stateOf(namespace)
      const spec = await deployments.specOf(namespace)
      const addresses: Address[] = spec === undefined ? [] : addressesOf(spec, services)
      return { summary, containers: [...containers], addresses, reason }
    },
    async *logs(request, context): AsyncGenerator<LogLine> {
      const { namespace } = (await signedFor('Logs', context)).identity
      await stateOf(namespace)
      const { container, follow, tail, sinceSeconds, previous } = request
      const wanted = {
        ...(container !== '' && { container }),
        follow,
        previous,
        ...(tail > 0 && { tailLines: tail }),
        ...(sinceSeconds > 0 && { sinceSeconds }),
      }
      yield* podLogs(cluster, namespace, wanted, context.signal)
    },
    events: ({ follow }, context) => events(follow, context),
    exec: async (_request, context) => {
      await signedFor('Exec', context)
      throw new PodError(
        'PERMISSION_DENIED',
        'commands cannot be run in a pod: who could, could read its secrets; have the image do it, and read its logs',
      )
    },
    capacity: async () => await capacity.ask(),
  }
}

/** Throws PodError INVALID_ARGUMENT for bytes that are none. */
function deploymentOf(payload: Uint8Array): Deployment {
  try {
    return fromBinary(DeploymentSchema, payload)
  } catch (cause) {
    const message = `payload: is no ${DeploymentSchema.typeName}`
    throw new PodError('INVALID_ARGUMENT', message, { field: 'payload' }, cause)
  }
}

type Step = NonNullable<MessageInitShape<typeof DeployProgressSchema>['step']>

function step(step: Step): DeployProgress {
  return create(DeployProgressSchema, { step })
}

function notFound(namespace: string): PodError {
  return new PodError('NOT_FOUND', `there is no pod ${namespace} of yours here`, { namespace })
}

/** What has happened since it was asked for last. */
class EventNews {
  readonly #events: () => Promise<PodEvent[]>
  /** Of the last answer: what the API has forgotten does not come again. */
  #told: ReadonlySet<string> = new Set()

  constructor(events: () => Promise<PodEvent[]>) {
    this.#events = events
  }

  async ask(): Promise<PodEvent[]> {
    const events = await this.#events()
    // Not by its time: that of one that happens again is new each time.
    const keyed = events.map((event) => ({
      event,
      key: `${event.object}/${event.reason}/${event.message}`,
    }))
    const news = keyed.filter(({ key }) => !this.#told.has(key))
    this.#told = new Set(keyed.map(({ key }) => key))
    return news.map(({ event }) => event)
  }
}

/** Waits that grow. */
function pauses(): (signal: AbortSignal) => Promise<void> {
  let ms = LOOK_FIRST_MS
  return async (signal) => {
    await setTimeout(ms, undefined, { signal }).catch(() => undefined)
    ms = Math.min(ms * LOOK_GROWTH, LOOK_LAST_MS)
  }
}
