import {
  ApiException,
  ApiextensionsV1Api,
  AppsV1Api,
  CoreV1Api,
  type KubernetesObject,
  KubernetesObjectApi,
  NetworkingV1Api,
  NodeV1Api,
  PatchStrategy,
  type RequestContext,
  type V1Pod,
  type V1PodSpec,
  type V1StatefulSet,
  type V1Status,
} from '@kubernetes/client-node'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import type { ClusterSettings } from '../../agent/deploy/cluster-settings.ts'
import { KubeCluster } from '../../agent/deploy/kube-cluster.ts'
import { kubernetesObjects } from '../../agent/deploy/kubernetes-objects.ts'
import { addressesOf } from '../../agent/deploy/pod-addresses.ts'
import { namespaceOf } from '../../agent/deploy/pod-namespace.ts'
import type { PodIdentity, PodSpec } from '../../agent/deploy/pod-spec.ts'
import { freePort } from '../support/agent.ts'
import { Daemon } from '../support/daemon.ts'
import { failureOf } from '../support/failure-of.ts'
import { goProgram } from '../support/go-programs.ts'
import { KubeApiServer } from '../support/kube-apiserver.ts'
import { containerSpec, IDENTITY, podSpec, randomPodSpec } from '../support/random-pod-spec.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// Goal: what we make of a pod is what Kubernetes means by it. Method: a kube-apiserver on an etcd of its own, and, for the tests at the end,
// its controllers. There is no node, so that replicas are ready when the test says so. Each test has namespaces of its own.

const KEDA: ClusterSettings = {
  routes: { kind: 'ingress', className: 'nginx' },
  keda: { namespace: 'keda', service: 'keda-add-ons-http-interceptor-proxy', port: 8_080 },
  ingressNamespaces: ['ingress-nginx'],
  scaleDown: {
    listen: { host: '0.0.0.0', port: 5_084 },
    url: 'http://ipdr-scale-down.ipdr-system.svc:5084',
  },
  clusterCidrs: ['10.0.0.0/8', '172.16.0.0/12', 'fc00::/7', '2001:db8::/32'],
  userNamespaces: false,
  namespace: 'ipdr-system',
}
const GATEWAY: ClusterSettings = {
  ...KEDA,
  routes: {
    kind: 'gateway',
    parent: { namespace: 'gateways', name: 'public', sectionName: 'http' },
  },
  keda: undefined,
  scaleDown: undefined,
  userNamespaces: true,
  storageClass: 'fast',
  sharedStorageClass: 'nfs',
}

const WEB = {
  name: 'web',
  containerPort: 80,
  servicePort: 80,
  exposure: { kind: 'http', host: 'a.example.com' },
} as const

const patience = { timeout: 60_000, interval: 100 }

/** Takes a field that the server does not know for a mistake, and changes nothing. Those of built-in kinds the client leaves out by itself: tsc finds them. */
class StrictApi extends KubernetesObjectApi {
  async try(object: KubernetesObject): Promise<void> {
    const strategy = PatchStrategy.ServerSideApply
    await this.patch(object, undefined, 'All', 'ipdr-agent', true, strategy)
  }

  protected override async requestPromise<T extends KubernetesObject>(
    context: RequestContext,
    type?: string,
  ): Promise<T> {
    context.setQueryParam('fieldValidation', 'Strict')
    return await super.requestPromise<T>(context, type)
  }
}

const opened = new AsyncDisposableStack()
let scratch: Scratch
let server: KubeApiServer
let cluster: KubeCluster
let strict: StrictApi
let core: CoreV1Api
let apps: AppsV1Api

beforeAll(async () => {
  scratch = opened.use(Scratch.open('deployed-objects'))
  server = opened.use(await KubeApiServer.start(scratch))
  cluster = KubeCluster.open({ kubeconfig: server.adminKubeconfig })
  strict = server.admin.makeApiClient(StrictApi)
  core = server.admin.makeApiClient(CoreV1Api)
  apps = server.admin.makeApiClient(AppsV1Api)
  await define('http.keda.sh', 'v1alpha1', 'HTTPScaledObject', {
    hosts: listOf(TEXT),
    scaleTargetRef: mapOf({
      apiVersion: TEXT,
      kind: TEXT,
      name: TEXT,
      service: TEXT,
      port: NUMBER,
    }),
    replicas: mapOf({ min: NUMBER, max: NUMBER }),
    targetPendingRequests: NUMBER,
  })
  await define('gateway.networking.k8s.io', 'v1', 'HTTPRoute', {
    parentRefs: listOf(mapOf({ namespace: TEXT, name: TEXT, sectionName: TEXT })),
    hostnames: listOf(TEXT),
    rules: listOf(mapOf({ backendRefs: listOf(mapOf({ name: TEXT, port: NUMBER })) })),
  })
  await server.admin.makeApiClient(NodeV1Api).createRuntimeClass({
    body: {
      metadata: { name: 'kata' },
      handler: 'kata',
      overhead: { podFixed: { cpu: '250m', memory: '160Mi' } },
    },
  })
}, 900_000)

afterAll(() => opened.disposeAsync(), 60_000)

type Schema = { readonly type: string; readonly [field: string]: unknown }
const TEXT: Schema = { type: 'string' }
const NUMBER: Schema = { type: 'integer' }
const listOf = (items: Schema): Schema => ({ type: 'array', items })
const mapOf = (properties: Readonly<Record<string, Schema>>): Schema => ({
  type: 'object',
  properties,
})

/** Has the server know a kind of KEDA's or the gateways', with those of its fields that we use. */
async function define(
  group: string,
  version: string,
  kind: string,
  fields: Readonly<Record<string, Schema>>,
): Promise<void> {
  const plural = `${kind.toLowerCase()}s`
  const name = `${plural}.${group}`
  const schema = { openAPIV3Schema: mapOf({ spec: mapOf(fields) }) }
  const api = server.admin.makeApiClient(ApiextensionsV1Api)
  await api.createCustomResourceDefinition({
    body: {
      metadata: {
        name,
        // k8s.io is for what was approved.
        annotations: {
          'api-approved.kubernetes.io': 'https://github.com/kubernetes-sigs/gateway-api',
        },
      },
      spec: {
        group,
        scope: 'Namespaced',
        names: { kind, plural, singular: kind.toLowerCase() },
        versions: [{ name: version, served: true, storage: true, schema }],
      },
    },
  })
  await vi.waitUntil(async () => {
    const { status } = await api.readCustomResourceDefinition({ name })
    return status?.conditions?.some((one) => one.type === 'Established' && one.status === 'True')
  }, patience)
}

let pods = 0

/** A pod that no other test has. */
function newIdentity(): PodIdentity {
  const { publisher } = IDENTITY
  const podId = `0x${(++pods).toString(16).padStart(64, '0')}` as const
  return { publisher, podId, namespace: namespaceOf(publisher, podId) }
}

/** Applies a pod as the deploy endpoint does, and gives back what the server made of it. */
async function apply(
  spec: PodSpec,
  identity: PodIdentity,
  { settings = KEDA, isNew = true }: { settings?: ClusterSettings; isNew?: boolean } = {},
): Promise<KubernetesObject[]> {
  const applied: KubernetesObject[] = []
  for (const object of kubernetesObjects(spec, identity, settings, { isNew })) {
    applied.push(await cluster.apply(object))
  }
  return applied
}

/** A replica of the pod's template, changed by the test; disks that it would get of its own are there. */
function replicaOf(
  spec: PodSpec,
  identity: PodIdentity,
  change: (pod: V1PodSpec) => void = () => undefined,
): V1Pod {
  const objects = kubernetesObjects(spec, identity, KEDA, { isNew: true })
  const workload = objects.find(({ kind }) => kind === 'Deployment' || kind === 'StatefulSet')
  const { template, volumeClaimTemplates = [] } =
    (workload as V1StatefulSet).spec ?? failed('no workload')
  const pod = structuredClone(template.spec ?? failed('no pod'))
  const claims = volumeClaimTemplates.map(({ metadata }) => metadata?.name ?? '')
  pod.volumes = [
    ...(pod.volumes ?? []),
    ...claims.map((name) => ({ name, persistentVolumeClaim: { claimName: name } })),
  ]
  change(pod)
  return { metadata: Object.assign({ name: 'replica' }, template.metadata), spec: pod }
}

function failed(message: string): never {
  throw new Error(message)
}

/** Whether the server would let it be, and why not. */
async function admit({ namespace }: PodIdentity, body: V1Pod): Promise<string> {
  try {
    await core.createNamespacedPod({ namespace, body, dryRun: 'All', fieldValidation: 'Strict' })
    return 'admitted'
  } catch (error) {
    if (!(error instanceof ApiException)) throw error
    return (JSON.parse(String(error.body)) as V1Status).message ?? ''
  }
}

test('every object of any pod is taken whole, and once more without changing anything', async () => {
  const random = seeded(43)
  for (let pod = 0; pod < 24; pod++) {
    const [spec, identity] = [randomPodSpec(random), newIdentity()]
    // Ports of nodes are the cluster's, and random pods choose the same ones.
    const own = withoutNodePorts(spec)
    const settings = pod % 2 === 0 ? KEDA : GATEWAY
    const objects = kubernetesObjects(own, identity, settings, { isNew: true })
    const [namespace, ...others] = objects
    if (namespace === undefined) throw new Error('no namespace')
    await strict.try(namespace)
    await cluster.apply(namespace)
    for (const object of others) await strict.try(object)
    const made = contentsOf(await apply(own, identity, { settings }))
    const again = contentsOf(await apply(own, identity, { settings }))
    expect(again, `pod ${pod}`).toEqual(made)
  }
}, 300_000)

/** All but the version, which the first update of a claim moves on with nothing else; generations count. */
function contentsOf(objects: readonly KubernetesObject[]): unknown[] {
  return objects.map((object) => {
    const { metadata, ...contents } = object
    const { resourceVersion: _, managedFields: __, ...others } = metadata ?? {}
    return { ...contents, metadata: others }
  })
}

function withoutNodePorts(spec: PodSpec): PodSpec {
  return {
    ...spec,
    containers: spec.containers.map((container) => ({
      ...container,
      ports: container.ports.map((port) =>
        port.exposure?.kind === 'tcp'
          ? { ...port, exposure: { kind: 'tcp', nodePort: undefined } }
          : port,
      ),
    })),
  }
}

test('a field that the server does not know is not taken: the test above would see it', async () => {
  const identity = newIdentity()
  await apply(podSpec(), identity)
  const object = {
    apiVersion: 'http.keda.sh/v1alpha1',
    kind: 'HTTPScaledObject',
    metadata: { name: 'a', namespace: identity.namespace },
    spec: { host: 'a.example.com' },
  }
  expect(await failureOf(() => strict.try(object))).toMatchObject({
    message: expect.stringContaining('field not declared in schema') as string,
  })
})

test('replicas of any pod are let in, with a runtime class that needs something for itself too', async () => {
  const random = seeded(44)
  for (let pod = 0; pod < 24; pod++) {
    const [spec, identity] = [withoutNodePorts(randomPodSpec(random)), newIdentity()]
    const one: PodSpec = pod % 4 === 0 ? { ...spec, runtimeClass: 'kata' } : spec
    await apply(one, identity)
    expect(await admit(identity, replicaOf(one, identity)), `pod ${pod}`).toBe('admitted')
  }
}, 300_000)

test('what could reach its node is let in by nobody, whoever asks', async () => {
  const identity = newIdentity()
  const spec = podSpec()
  await apply(spec, identity)
  const inContainer =
    (securityContext: object) =>
    (pod: V1PodSpec): void => {
      for (const container of pod.containers) {
        Object.assign(container.securityContext ?? {}, securityContext)
      }
    }
  const hostile: Readonly<Record<string, (pod: V1PodSpec) => void>> = {
    privileged: inContainer({ privileged: true, allowPrivilegeEscalation: true }),
    escalating: inContainer({ allowPrivilegeEscalation: true }),
    capable: inContainer({ capabilities: { drop: ['ALL'], add: ['SYS_ADMIN'] } }),
    unfiltered: inContainer({ seccompProfile: { type: 'Unconfined' } }),
    root: inContainer({ runAsUser: 0 }),
    'maybe root': (pod) => delete pod.securityContext?.runAsNonRoot,
    'on the network of its node': (pod) => (pod.hostNetwork = true),
    'among the processes of its node': (pod) => (pod.hostPID = true),
    'on the files of its node': (pod) => {
      pod.volumes = [{ name: 'root', hostPath: { path: '/' } }]
    },
    'with a sysctl of its node': (pod) => {
      Object.assign(pod.securityContext ?? {}, { sysctls: [{ name: 'kernel.msgmax', value: '1' }] })
    },
  }
  for (const [name, change] of Object.entries(hostile)) {
    const answer = await admit(identity, replicaOf(spec, identity, change))
    expect.soft(answer, name).toContain('violates PodSecurity "restricted:latest"')
  }
})

test('a replica that is larger than what was paid for is not let in', async () => {
  const identity = newIdentity()
  const spec = podSpec({ containers: [containerSpec({ cpuMillis: 500, memoryBytes: 2 ** 27 })] })
  await apply(spec, identity)
  const larger = podSpec({ containers: [containerSpec({ cpuMillis: 501, memoryBytes: 2 ** 27 })] })
  const answer = await admit(identity, replicaOf(larger, identity))
  expect(answer).toContain('maximum cpu usage per Pod is 500m, but limit is 501m')
})

test('the server has the senders of each policy: without any, it would let in everybody', async () => {
  const identity = newIdentity()
  await apply(podSpec({ containers: [containerSpec({ ports: [WEB] })] }), identity)
  const { namespace } = identity
  const api = server.admin.makeApiClient(NetworkingV1Api)
  for (const name of ['tpod-within', 'tpod-http']) {
    const { spec } = await api.readNamespacedNetworkPolicy({ namespace, name })
    expect(spec, `policy ${name}`).toMatchObject({ ingress: [{ _from: [{}] }] })
  }
})

test('an update leaves the number of replicas to KEDA', async () => {
  const identity = newIdentity()
  const { namespace } = identity
  const spec = podSpec({
    containers: [containerSpec({ ports: [WEB] })],
    scaling: { min: 0, max: 5 },
  })
  const replicas = async (): Promise<number | undefined> =>
    (await apps.listNamespacedDeployment({ namespace })).items[0]?.spec?.replicas
  await apply(spec, identity)
  expect(await replicas()).toBe(0)
  const name = (await apps.listNamespacedDeployment({ namespace })).items[0]?.metadata?.name ?? ''
  const body = { metadata: { name, namespace }, spec: { replicas: 3 } }
  await apps.replaceNamespacedDeploymentScale({ namespace, name, body })
  await apply({ ...spec, scaling: { min: 0, max: 4 } }, identity, { isNew: false })
  expect(await replicas()).toBe(3)
})

test('an update of a pod that has not been woken yet wakes it: it is seen to start, and sleeps again', async () => {
  const identity = newIdentity()
  const spec = podSpec({
    containers: [containerSpec({ ports: [WEB] })],
    scaling: { min: 0, max: 5 },
  })
  await apply(spec, identity)
  await apply(spec, identity, { isNew: false })
  const { items } = await apps.listNamespacedDeployment({ namespace: identity.namespace })
  expect(items[0]?.spec?.replicas).toBe(1)
})

test('a publisher is told the port of the nodes that the cluster has chosen', async () => {
  const identity = newIdentity()
  const { namespace } = identity
  const wire = {
    name: 'wire',
    containerPort: 5_432,
    servicePort: 5_432,
    exposure: { kind: 'tcp', nodePort: undefined },
  } as const
  const spec = podSpec({ containers: [containerSpec({ ports: [wire] })] })
  await apply(spec, identity)
  const { items } = await core.listNamespacedService({ namespace })
  const [address] = addressesOf(spec, items)
  expect(address?.where).toEqual({ case: 'tcpPort', value: expect.any(Number) as number })
  // It stays the same.
  await apply(spec, identity, { isNew: false })
  const again = await core.listNamespacedService({ namespace })
  expect(addressesOf(spec, again.items)).toEqual([address])
})

let haveControllers = false

/** Deployments, StatefulSets and quotas come to life. */
async function startControllers(): Promise<void> {
  if (haveControllers) return
  haveControllers = true
  const port = await freePort()
  const { certFile, keyFile } = server.serverCertificate
  const daemon = opened.use(
    await Daemon.start(scratch, 'kube-controller-manager', [
      await goProgram('kube-controller-manager'),
      `--kubeconfig=${server.adminKubeconfig}`,
      '--leader-elect=false',
      '--bind-address=127.0.0.1',
      `--secure-port=${port}`,
      `--tls-cert-file=${certFile}`,
      `--tls-private-key-file=${keyFile}`,
      '--controllers=deployment-controller,replicaset-controller,statefulset-controller,resourcequota-controller,garbage-collector-controller',
    ]),
  )
  await daemon.whenReady(() => server.answers(`https://127.0.0.1:${port}/healthz`))
}
/** Names of the replicas that there are, once there are so many. */
async function replicas(namespace: string, count: number): Promise<string[]> {
  const names = async (): Promise<string[]> =>
    (await core.listNamespacedPod({ namespace })).items
      .filter(({ metadata }) => metadata?.deletionTimestamp === undefined)
      .map(({ metadata }) => metadata?.name ?? '')
      .toSorted()
  await expect.poll(async () => (await names()).length, patience).toBe(count)
  return await names()
}

/** As a kubelet does it. */
async function makeReady(namespace: string, name: string): Promise<void> {
  const pod = await core.readNamespacedPod({ namespace, name })
  const conditions = [{ type: 'Ready', status: 'True', lastTransitionTime: new Date() }]
  pod.status = Object.assign(pod.status ?? {}, { phase: 'Running', conditions })
  await core.replaceNamespacedPodStatus({ namespace, name, body: pod })
}

test('controllers make replicas of a stateful pod one after the other, each with its disk', async () => {
  await startControllers()
  const identity = newIdentity()
  const { namespace } = identity
  const spec = podSpec({
    containers: [containerSpec({ mounts: [{ volume: 'own', path: '/data', readOnly: false }] })],
    volumes: [{ kind: 'disk', name: 'own', bytes: 2 ** 30, isShared: false }],
    scaling: { min: 2, max: 2 },
    isStateful: true,
  })
  await apply(spec, identity)
  expect(await replicas(namespace, 1)).toEqual(['tpod-set-0'])
  await makeReady(namespace, 'tpod-set-0')
  expect(await replicas(namespace, 2)).toEqual(['tpod-set-0', 'tpod-set-1'])
  const { items } = await core.listNamespacedPersistentVolumeClaim({ namespace })
  expect(items.map(({ metadata }) => metadata?.name ?? '').toSorted()).toEqual([
    'tpod-pvc-own-tpod-set-0',
    'tpod-pvc-own-tpod-set-1',
  ])
}, 240_000)

test('a pod that gets smaller is rolled out, though its old replica takes more than all that is new', async () => {
  await startControllers()
  const identity = newIdentity()
  const { namespace } = identity
  const sized = (memoryBytes: number): PodSpec =>
    podSpec({ containers: [containerSpec({ memoryBytes })] })
  await apply(sized(64 * 2 ** 30), identity)
  const [old = ''] = await replicas(namespace, 1)
  await makeReady(namespace, old)
  // From here on the quota is enforced.
  await expect
    .poll(async () => {
      const { items } = await core.listNamespacedResourceQuota({ namespace })
      return items[0]?.status?.used?.['pods']
    }, patience)
    .toBe('1')
  await apply(sized(2 ** 30), identity, { isNew: false })
  const both = await replicas(namespace, 2)
  expect(both).toContain(old)
  await makeReady(namespace, both.find((name) => name !== old) ?? '')
  expect(await replicas(namespace, 1)).not.toContain(old)
}, 240_000)
