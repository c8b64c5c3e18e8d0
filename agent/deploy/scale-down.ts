import type { V1Deployment, V1Namespace, V1Pod } from '@kubernetes/client-node'
import { CodedError } from '../../snapshotter/errors.ts'
import type { Log } from '../../snapshotter/log.ts'
import { CallError } from './call-error.ts'
import { type Cluster, NAMESPACE, POD } from './cluster.ts'
import type { ClusterSettings } from './cluster-settings.ts'
import { identityOf } from './deployments.ts'
import { ACCOUNT_NAME, workloadRef } from './objects/object-names.ts'
import { maySleep } from './objects/request-scaling.ts'
import { SCALE_DOWN_AUDIENCE, SCALE_DOWN_TOKEN_FILE } from './objects/scale-down-token.ts'
import type { PodIdentity, PodSpec } from './pod-spec.ts'
import { RequestRate } from './request-rate.ts'

/** A pod that is not put to sleep, and is not to be either. */
export class ScaleDownError extends CodedError {}

/** Of one pod, however many replicas it has; two at once after a pause. Nobody falls asleep more often. */
const ASKED_PER_SECOND_MAX = 1

/** How often somebody else may change the Deployment while we look at the pod. 5: its controller does so with every replica that comes or goes. */
const ATTEMPTS_MAX = 5

type Parts = {
  readonly cluster: Cluster
  /** What is asked for of the pod in a namespace; undefined: nothing. */
  readonly specOf: (namespace: string) => Promise<PodSpec | undefined>
  readonly log: Pick<Log, 'info'>
}

/** Puts pods to sleep that ask for it themselves. KEDA wakes them with the next request, as those that it has put to sleep. */
export class ScaleDown {
  readonly #settings: ClusterSettings
  readonly #parts: Parts
  readonly #rate = new RequestRate(ASKED_PER_SECOND_MAX)

  constructor(settings: ClusterSettings, parts: Parts) {
    this.#settings = settings
    this.#parts = parts
  }

  /**
   * Takes all replicas from the pod that `token` is of, and resolves to its namespace. Rejects with CallError UNAUTHENTICATED, PERMISSION_DENIED or
   * RESOURCE_EXHAUSTED, with ScaleDownError for a pod that may not sleep or is just being changed, with PodError and ClusterError.
   */
  async sleep(token: string): Promise<string> {
    const { cluster } = this.#parts
    const replica = await cluster.reviewToken(token, SCALE_DOWN_AUDIENCE)
    if (replica === undefined) throw invalidToken()
    const { namespace, account, pod } = replica
    if (account !== ACCOUNT_NAME) throw notOurs(namespace, account)
    if (!this.#rate.takes(namespace)) {
      throw new CallError(
        'RESOURCE_EXHAUSTED',
        `pod ${namespace} asks more than ${ASKED_PER_SECOND_MAX} time a second`,
      )
    }
    const found = await cluster.read<V1Namespace>({ ...NAMESPACE, metadata: { name: namespace } })
    const identity = found && identityOf(found)
    if (identity === undefined) throw notOurs(namespace, account)
    const replicaRef = { ...POD, metadata: { namespace, name: pod } }
    const running = await cluster.read<V1Pod>(replicaRef)
    // The API remembers for ten seconds that a token was good.
    if (running === undefined) throw invalidToken()
    if (running.metadata?.deletionTimestamp !== undefined) {
      throw new ScaleDownError(
        'FAILED_PRECONDITION',
        `replica ${pod} is ending: what others do, those decide that came after it`,
      )
    }
    await this.#sleep(identity, pod)
    return namespace
  }

  async #sleep(identity: PodIdentity, pod: string): Promise<void> {
    const { cluster, specOf, log } = this.#parts
    const { namespace } = identity
    const { apiVersion, kind, name } = workloadRef({ isStateful: false }, identity)
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
      // Before we look whether it may sleep: a deployment that forbids it is written down first, and changes this one afterwards.
      const found = await cluster.read<V1Deployment>({
        apiVersion,
        kind,
        metadata: { namespace, name },
      })
      const spec = await specOf(namespace)
      if (spec !== undefined) this.#check(spec)
      const { resourceVersion } = found?.metadata ?? {}
      if (spec === undefined || resourceVersion === undefined) {
        throw new ScaleDownError('FAILED_PRECONDITION', `there is no pod ${namespace} any more`)
      }
      const { replicas = 1 } = found?.spec ?? {}
      if (replicas === 0) return
      if (await cluster.scale({ namespace, name, resourceVersion }, 0)) {
        log.info({ namespace, pod, replicas }, `pod ${namespace} sleeps, as it asked to`)
        return
      }
    }
    throw new ScaleDownError(
      'ABORTED',
      `pod ${namespace} is being changed at the moment; ask again in a second`,
    )
  }

  /** Throws ScaleDownError for what is never put to sleep. */
  #check(spec: PodSpec): void {
    if (maySleep(spec, this.#settings)) return
    const reason = spec.isStateful
      ? 'is stateful, and a stateful pod never sleeps'
      : spec.scaling.min > 0
        ? `asks for ${spec.scaling.min} replicas at least; deploy it with scaling.min 0`
        : 'would not be woken by requests in this cluster'
    throw new ScaleDownError('FAILED_PRECONDITION', `the pod ${reason}`)
  }
}

function invalidToken(): CallError {
  return new CallError(
    'UNAUTHENTICATED',
    `the token is not one for ${SCALE_DOWN_AUDIENCE} of a replica that is there, or has expired; read ${SCALE_DOWN_TOKEN_FILE} anew each time`,
  )
}

function notOurs(namespace: string, account: string): CallError {
  return new CallError(
    'PERMISSION_DENIED',
    `${account} of namespace ${namespace} is not the account of a publisher's pod`,
  )
}
