import {
  ApiException,
  AppsV1Api,
  AuthenticationV1Api,
  HttpMethod,
  KubeConfig,
  type KubernetesObject,
  KubernetesObjectApi,
  PatchStrategy,
  RequestContext,
} from '@kubernetes/client-node'
import { fetch, type Response } from 'undici'
import type { ErrorCode } from '../../snapshotter/errors.ts'
import { type KubeAccess, loadAccess, whereOf } from '../kubernetes/kube-access.ts'
import {
  type Cluster,
  ClusterError,
  DEPLOYMENT,
  type DeploymentVersion,
  type Kind,
  type LogOptions,
  type Ref,
  type ReplicaToken,
} from './cluster.ts'

/** Who owns the fields that we apply. */
const FIELD_MANAGER = 'ipdr-agent'

/** Who puts pods to sleep that ask for it, as audit logs name it. It applies nothing, so that no apply drops what it has set. */
const SCALE_FIELD_MANAGER = 'ipdr-agent-scale-down'

/** How a service account is called as a user, and what the API adds of the pod that a token is bound to (Kubernetes, "Managing Service Accounts"). */
const ACCOUNT_USER = /^system:serviceaccount:([a-z0-9-]{1,63}):([a-z0-9.-]{1,253})$/
const POD_EXTRA = 'authentication.kubernetes.io/pod-name'

/** One request, in ms. 30 s: kube-apiserver gives most up after 60, and somebody waits. */
const REQUEST_MS_MAX = 30_000

/** A line of a log that does not end is cut there: 1 MiB of memory a reader. */
const LINE_CHARS_MAX = 1024 * 1024

/** Of what the API says of a mistake: a publisher reads it. */
const REASON_CHARS_MAX = 500

/** A Kubernetes API, asked with its own client. */
export class KubeCluster implements Cluster {
  readonly #api: KubernetesObjectApi
  readonly #kube: KubeConfig

  private constructor(api: KubernetesObjectApi, kube: KubeConfig) {
    this.#api = api
    this.#kube = kube
  }

  /** Throws ClusterError FAILED_PRECONDITION if nothing says where the API is. */
  static open(access: KubeAccess): KubeCluster {
    const kube = new KubeConfig()
    try {
      loadAccess(kube, access)
    } catch (error) {
      // Not the error itself: a parser may quote what it read.
      const why = error instanceof Error && 'code' in error ? String(error.code) : 'not usable'
      throw new ClusterError(
        'FAILED_PRECONDITION',
        `the cluster cannot be asked: ${whereOf(access)} (${why}); set deploy.kubeconfig, or run in a pod with a service account`,
      )
    }
    return new KubeCluster(KubernetesObjectApi.makeApiClient(kube), kube)
  }

  async apply<T extends KubernetesObject>(object: T): Promise<T> {
    return await answered(object, async () =>
      this.#api.patch(
        object,
        undefined,
        undefined,
        FIELD_MANAGER,
        // What somebody else has set meanwhile is not what the publisher asks for.
        true,
        PatchStrategy.ServerSideApply,
      ),
    )
  }

  async create<T extends KubernetesObject>(object: T): Promise<T | undefined> {
    return await unless([409], object, async () =>
      this.#api.create(object, undefined, undefined, FIELD_MANAGER),
    )
  }

  async replace<T extends KubernetesObject>(object: T): Promise<T | undefined> {
    return await unless([404, 409], object, async () =>
      this.#api.replace(object, undefined, undefined, FIELD_MANAGER),
    )
  }

  async read<T extends KubernetesObject>(ref: Ref): Promise<T | undefined> {
    return await unless([404], ref, async () => this.#api.read<T>(ref as never))
  }

  async list<T extends KubernetesObject>(
    { apiVersion, kind }: Kind,
    {
      namespace,
      labels = {},
    }: { readonly namespace?: string; readonly labels?: Readonly<Record<string, string>> },
  ): Promise<T[]> {
    const selector = Object.entries(labels)
      .map(([name, value]) => `${name}=${value}`)
      .join(',')
    try {
      const { items } = await answered({ apiVersion, kind, metadata: { name: '' } }, async () =>
        this.#api.list<T>(
          apiVersion,
          kind,
          namespace,
          undefined,
          undefined,
          undefined,
          undefined,
          selector === '' ? undefined : selector,
        ),
      )
      return items.map((item) => ({ ...item, apiVersion, kind }))
    } catch (error) {
      // The client does not know it, the server neither.
      if (error instanceof ClusterError && error.facts['isUnknownKind'] === true) return []
      throw error
    }
  }

  async delete(ref: Ref, uid?: string): Promise<boolean> {
    const body = uid === undefined ? {} : { preconditions: { uid } }
    const done = await unless([404, 409], ref, async () =>
      this.#api.delete(ref, undefined, undefined, undefined, undefined, 'Foreground', body),
    )
    return done !== undefined
  }

  async scale(
    { namespace, name, resourceVersion }: DeploymentVersion,
    replicas: number,
  ): Promise<boolean> {
    const ref = { ...DEPLOYMENT, metadata: { namespace, name } }
    const body = { metadata: { namespace, name, resourceVersion }, spec: { replicas } }
    const fieldManager = SCALE_FIELD_MANAGER
    const api = this.#kube.makeApiClient(AppsV1Api)
    const done = await unless([404, 409], ref, async () =>
      api.replaceNamespacedDeploymentScale({ namespace, name, body, fieldManager }),
    )
    return done !== undefined
  }

  async reviewToken(token: string, audience: string): Promise<ReplicaToken | undefined> {
    const body = { spec: { token, audiences: [audience] } }
    const ref = { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview' }
    const { status } = await answered(ref, async () =>
      this.#kube.makeApiClient(AuthenticationV1Api).createTokenReview({ body }),
    )
    // An authenticator that does not know of audiences names none, and lets tokens for anybody pass.
    if (status?.authenticated !== true || status.audiences?.includes(audience) !== true) {
      return undefined
    }
    const [, namespace, account] = ACCOUNT_USER.exec(status.user?.username ?? '') ?? []
    const pod = status.user?.extra?.[POD_EXTRA]?.[0]
    if (namespace === undefined || account === undefined || pod === undefined) return undefined
    return { namespace, account, pod }
  }

  async *logs(
    { namespace, name }: { readonly namespace: string; readonly name: string },
    { container, follow, previous, tailLines, sinceSeconds }: LogOptions,
    signal: AbortSignal,
  ): AsyncGenerator<string> {
    const ref = { apiVersion: 'v1', kind: 'Pod', metadata: { namespace, name } }
    const path = `/api/v1/namespaces/${namespace}/pods/${name}/log`
    const url = new URL(path, this.#kube.getCurrentCluster()?.server)
    const query = { container, follow, previous, tailLines, sinceSeconds, timestamps: true }
    for (const [key, value] of Object.entries(query)) {
      if (value !== undefined) url.searchParams.set(key, String(value))
    }
    const response = await answered(ref, async () => this.#get(url, signal))
    const lines = (response.body ?? new ReadableStream<Uint8Array>())
      .pipeThrough(new TextDecoderStream())
      .pipeThrough(new LineStream())
    try {
      yield* lines
    } catch (error) {
      if (!signal.aborted) throw clusterError(ref, error)
    }
  }

  /** Not by the client's own class for logs: that one has a connection that breaks end the process. */
  async #get(url: URL, signal: AbortSignal): Promise<Response> {
    const context = new RequestContext(url.href, HttpMethod.GET)
    await this.#kube.applySecurityAuthentication(context)
    const dispatcher = context.getDispatcher()
    const response = await fetch(url, {
      headers: context.getHeaders(),
      signal,
      ...(dispatcher !== undefined && { dispatcher }),
    })
    if (response.ok) return response
    const body = (await response.text()).slice(0, 10_000)
    throw new ApiException(response.status, 'log', body, {})
  }
}

/** Lines of text; the last one need not have an end. What has no end for long is cut into pieces. */
class LineStream extends TransformStream<string, string> {
  constructor() {
    let rest = ''
    super({
      transform(text, controller) {
        const lines = (rest + text).split('\n')
        rest = lines.pop() ?? ''
        for (const line of lines) controller.enqueue(line)
        if (rest.length < LINE_CHARS_MAX) return
        controller.enqueue(rest)
        rest = ''
      },
      flush(controller) {
        if (rest !== '') controller.enqueue(rest)
      },
    })
  }
}

/** Undefined in place of an answer with one of these statuses. */
async function unless<T>(
  statuses: readonly number[],
  ref: object,
  ask: () => Promise<T>,
): Promise<T | undefined> {
  try {
    return await answered(ref as Ref, ask)
  } catch (error) {
    const status = error instanceof ClusterError ? error.facts['status'] : undefined
    if (typeof status === 'number' && statuses.includes(status)) return undefined
    throw error
  }
}

/** What the API answers within REQUEST_MS_MAX. */
async function answered<T>(ref: KubernetesObject, ask: () => Promise<T>): Promise<T> {
  const late = Promise.withResolvers<never>()
  const timer = setTimeout(() => {
    const message = `the cluster did not answer within ${REQUEST_MS_MAX} ms`
    late.reject(new ClusterError('UNAVAILABLE', message))
  }, REQUEST_MS_MAX)
  try {
    return await Promise.race([ask(), late.promise])
  } catch (error) {
    if (error instanceof ClusterError) throw error
    throw clusterError(ref, error)
  } finally {
    clearTimeout(timer)
  }
}

function clusterError({ kind, metadata }: KubernetesObject, cause: unknown): ClusterError {
  const what = `${kind} ${metadata?.name ?? ''}`.trim()
  const status = statusOf(cause)
  const reason = reasonOf(cause)
  if (status === undefined) {
    const isUnknownKind = cause instanceof Error && /[Uu]nrecognized API/.test(cause.message)
    const code = isUnknownKind ? 'UNIMPLEMENTED' : 'UNAVAILABLE'
    const facts = { isUnknownKind }
    return new ClusterError(
      code,
      `the cluster cannot be asked for ${what}: ${reason}`,
      facts,
      cause,
    )
  }
  return new ClusterError(
    codeOf(status),
    `the cluster refuses ${what}: ${reason}`,
    { status, what, isUnknownKind: status === 404 && metadata?.name === '' },
    cause,
  )
}

function codeOf(status: number): ErrorCode {
  switch (status) {
    case 400:
    case 422:
      return 'INVALID_ARGUMENT'
    case 401:
      return 'UNAVAILABLE'
    case 403:
      return 'PERMISSION_DENIED'
    case 404:
      return 'NOT_FOUND'
    case 409:
      return 'ABORTED'
    default:
      return 'UNAVAILABLE'
  }
}

function statusOf(error: unknown): number | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'number'
    ? error.code
    : undefined
}

/** The API's own sentence, where it has one. */
function reasonOf(error: unknown): string {
  const body = error instanceof Error && 'body' in error ? error.body : undefined
  const text = typeof body === 'string' ? messageIn(body) : undefined
  const shown = text ?? (error instanceof Error ? error.message : String(error))
  return shown.length > REASON_CHARS_MAX ? `${shown.slice(0, REASON_CHARS_MAX)}…` : shown
}

function messageIn(body: string): string | undefined {
  try {
    const value: unknown = JSON.parse(body)
    const message =
      typeof value === 'object' && value !== null && 'message' in value ? value.message : undefined
    return typeof message === 'string' ? message : undefined
  } catch {
    return undefined
  }
}
