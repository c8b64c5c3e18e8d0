import { join } from 'node:path'
import { create } from '@bufbuild/protobuf'
import { AppsV1Api, CoreV1Api, KubernetesObjectApi, NetworkingV1Api } from '@kubernetes/client-node'
import type { Libp2p } from '@libp2p/interface'
import type { Hex } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { startClientHost } from '../../agent/client/client-host.ts'
import { DeployClient } from '../../agent/client/deploy-client.ts'
import type { DeployEndpoint } from '../../agent/deploy/deploy-endpoint.ts'
import { KubeCluster as Kube } from '../../agent/deploy/kube-cluster.ts'
import { namespaceOf } from '../../agent/deploy/pod-namespace.ts'
import { PodSchema } from '../../proto/messages/ipdr/deploy_pb.js'
import { TestChain } from '../support/chain/test-chain.ts'
import { deployAccount } from '../support/deploy-account.ts'
import { KubeApiServer } from '../support/kube-apiserver.ts'
import { KubeControllers } from '../support/kube-controllers.ts'
import { listenForDeploys } from '../support/listen-for-deploys.ts'
import { Scratch } from '../support/scratch.ts'

// Goal: a publisher's pods come to be in a real cluster, by an agent that has no more rights than node-image/kubernetes gives it. Method: a
// kube-apiserver with RBAC and admission and its controllers, on an etcd of its own; a payment contract on a chain of its own; libp2p
// between two hosts. There is no kubelet: replicas are made, and stay pending.

const opened = new AsyncDisposableStack()
let scratch: Scratch
let server: KubeApiServer
let chain: TestChain
let client: Libp2p
let kubeconfig: string
let endpoint: DeployEndpoint
let agents = 0
let pods = 0

beforeAll(async () => {
  scratch = opened.use(Scratch.open('deploy-kube'))
  server = opened.use(await KubeApiServer.start(scratch))
  opened.use(await KubeControllers.start(scratch, server))
  chain = opened.use(await TestChain.start(scratch))
  client = await startClientHost()
  opened.defer(() => client.stop())
  kubeconfig = (await deployAccount(server)).kubeconfig
  endpoint = opened.use(await listen())
}, 900_000)

afterAll(async () => await opened.disposeAsync(), 120_000)

async function listen(): Promise<DeployEndpoint> {
  const dir = join(scratch.dir, `agent-${agents++}`)
  return await listenForDeploys({ chain, cluster: Kube.open({ kubeconfig }), dir })
}

async function fundedPod(): Promise<Hex> {
  const podId: Hex = `0x${(++pods).toString(16).padStart(64, '0')}`
  await chain.createChannel(podId, { unlockSeconds: 300n, amount: 3_600_000n })
  return podId
}

function publisher(of = endpoint): DeployClient {
  return new DeployClient(client, of.multiaddrs, {
    signer: privateKeyToAccount(chain.publisherKey),
  })
}

type Pod = ReturnType<typeof create<typeof PodSchema>>

function pod(changes: Parameters<typeof create<typeof PodSchema>>[1] = {}): Pod {
  return create(PodSchema, {
    name: 'shop',
    containers: [
      {
        name: 'web',
        image: 'ghcr.io/some/image:1',
        cpuMillis: 100,
        memoryBytes: 2n ** 26n,
        env: { A: '$(B)' },
        ports: [
          {
            name: 'http',
            containerPort: 8080,
            exposure: { case: 'httpHost', value: 'shop.example.com' },
          },
        ],
        mounts: [
          { volume: 'data', path: '/data' },
          { volume: 'key', path: '/key' },
          { volume: 'tmp', path: '/tmp', readOnly: true },
        ],
      },
      {
        name: 'game',
        image: 'ghcr.io/some/game:1',
        cpuMillis: 100,
        memoryBytes: 2n ** 26n,
        ports: [{ name: 'game', containerPort: 7777, exposure: { case: 'tcpPort', value: 0 } }],
      },
    ],
    volumes: [
      { name: 'data', source: { case: 'disk', value: { bytes: 2n ** 30n } } },
      { name: 'key', source: { case: 'secret', value: { contents: Buffer.from('hidden') } } },
      { name: 'tmp', source: { case: 'scratch', value: { bytes: 2n ** 20n } } },
    ],
    registryLogins: [{ server: 'ghcr.io', username: 'me', password: 'secret' }],
    ...changes,
  })
}

function small(name: string): Pod {
  return pod({
    name,
    containers: [{ name: 'web', image: 'ghcr.io/a/b:1', cpuMillis: 10, memoryBytes: 2n ** 26n }],
    volumes: [],
    registryLogins: [],
  })
}

/** Until it is in the cluster; there is nobody who would start it. */
async function apply(
  podId: Hex,
  what: Pod,
  of = publisher(),
): Promise<{ objects: number; deleted: number }> {
  for await (const { step } of of.deploy(podId, { pod: what })) {
    if (step.case === 'applied') return step.value
  }
  throw new Error('it ended before it was applied')
}

test('a pod is all of its objects, and replicas of it pass admission', async () => {
  const podId = await fundedPod()
  const namespace = namespaceOf(chain.publisher, podId)
  await apply(podId, pod())
  const core = server.admin.makeApiClient(CoreV1Api)
  await expect
    .poll(async () => (await core.listNamespacedPod({ namespace })).items.length, {
      timeout: 60_000,
    })
    .toBe(1)
  const [replica] = (await core.listNamespacedPod({ namespace })).items
  expect(replica?.spec?.containers.map(({ name }) => name)).toEqual(['web', 'game'])
  expect(replica?.spec?.containers[0]?.env).toEqual([{ name: 'A', value: '$$(B)' }])
  const { addresses } = await publisher().status(podId)
  expect(addresses.map(({ where }) => where.case)).toEqual(['url', 'tcpPort'])
}, 120_000)

test('the same deployment once more changes no object', async () => {
  const podId = await fundedPod()
  const namespace = namespaceOf(chain.publisher, podId)
  const what = pod({ containers: small('x').containers })
  const apps = server.admin.makeApiClient(AppsV1Api)
  const networking = server.admin.makeApiClient(NetworkingV1Api)
  const versions = async (): Promise<unknown> => [
    (await apps.listNamespacedDeployment({ namespace })).items.map(
      ({ metadata }) => metadata?.generation,
    ),
    (await networking.listNamespacedNetworkPolicy({ namespace })).items.map(
      ({ metadata }) => metadata?.resourceVersion,
    ),
  ]
  await apply(podId, what)
  const before = await versions()
  expect(await apply(podId, what)).toMatchObject({ deleted: 0 })
  expect(await versions()).toEqual(before)
}, 120_000)

test('what a change leaves out is deleted, but its volume stays', async () => {
  const podId = await fundedPod()
  const namespace = namespaceOf(chain.publisher, podId)
  const hostless = pod()
  const web = hostless.containers[0]
  if (web?.ports[0] !== undefined) web.ports[0].exposure = { case: undefined }
  await apply(podId, hostless)
  const { deleted } = await apply(podId, small('shop'))
  expect(deleted).toBeGreaterThan(2)
  const core = server.admin.makeApiClient(CoreV1Api)
  expect((await core.listNamespacedService({ namespace })).items).toEqual([])
  expect((await core.listNamespacedPersistentVolumeClaim({ namespace })).items).toHaveLength(1)
  const names = (await core.listNamespacedSecret({ namespace })).items.map(
    ({ metadata }) => metadata?.name,
  )
  expect(names).toEqual(['ipdr-deployment'])
}, 120_000)

test('what the API refuses of a change leaves the pod as it was, and says which field', async () => {
  const podId = await fundedPod()
  const namespace = namespaceOf(chain.publisher, podId)
  await apply(podId, small('before'))
  const taken = small('after')
  const [container] = taken.containers
  if (container === undefined) throw new Error('no container')
  // Below the range of node ports.
  container.ports.push(
    create(PodSchema, {
      containers: [
        { ports: [{ name: 'p', containerPort: 1, exposure: { case: 'tcpPort', value: 80 } }] },
      ],
    }).containers[0]?.ports[0] as never,
  )
  await expect(apply(podId, taken)).rejects.toMatchObject({
    rawMessage: expect.stringMatching(/nodePort.*80/),
  })
  const { summary } = await publisher().status(podId)
  expect(summary?.name).toBe('before')
  const core = server.admin.makeApiClient(CoreV1Api)
  expect((await core.listNamespacedService({ namespace })).items).toEqual([])
}, 120_000)

test('a host name belongs to one pod, until the cluster has cleaned up after it', async () => {
  const [first, second] = [await fundedPod(), await fundedPod()]
  const named = (): Pod => {
    const what = pod({ volumes: [], registryLogins: [] })
    for (const container of what.containers) container.mounts = []
    const port = what.containers[0]?.ports[0]
    if (port !== undefined) port.exposure = { case: 'httpHost', value: 'mine.example.com' }
    return what
  }
  await apply(first, named())
  await expect(apply(second, named())).rejects.toMatchObject({
    rawMessage: expect.stringContaining("'mine.example.com' belongs to another pod"),
  })
  for await (const { done } of publisher().delete(first)) if (done) break
  await expect(async () => await publisher().status(first)).rejects.toMatchObject({ code: 5 })
  // The refused pod is being taken back by then, or gone.
  await expect
    .poll(() => apply(second, named()).then(() => 'applied', String), { timeout: 60_000 })
    .toBe('applied')
}, 180_000)

test('a deployment of an agent that was killed is gone on with by another', async () => {
  const podId = await fundedPod()
  const namespace = namespaceOf(chain.publisher, podId)
  const api = KubernetesObjectApi.makeApiClient(server.admin)
  await apply(podId, small('shop'))
  // As one that died right after it had written down what it was about to do.
  const label = { metadata: { name: namespace, labels: { 'ipdr.dev/state': 'applying' } } }
  await api.patch({ apiVersion: 'v1', kind: 'Namespace', ...label })
  await api.delete({
    apiVersion: 'networking.k8s.io/v1',
    kind: 'NetworkPolicy',
    metadata: { namespace, name: await firstPolicy(namespace) },
  })
  await using other = await listen()
  expect(await other.deployments.resume()).toBe(1)
  expect(await firstPolicy(namespace)).not.toBe('')
  expect(await other.deployments.resume()).toBe(0)
}, 120_000)

async function firstPolicy(namespace: string): Promise<string> {
  const networking = server.admin.makeApiClient(NetworkingV1Api)
  const { items } = await networking.listNamespacedNetworkPolicy({ namespace })
  return items.map(({ metadata }) => metadata?.name ?? '').toSorted()[0] ?? ''
}

test('an API that is away changes nothing, and says so', async () => {
  const podId = await fundedPod()
  await server.kill()
  const failure = apply(podId, small('shop'))
  await expect(failure).rejects.toMatchObject({ code: 14 })
  await server.start()
  await expect
    .poll(() => apply(podId, small('shop')).then(() => 'applied', String), { timeout: 60_000 })
    .toBe('applied')
}, 180_000)

test('100 deployments of 20 pods at once, by two agents: none is lost, none is done twice', async () => {
  await using other = await listen()
  const clients = [publisher(), publisher(other)] as const
  const ids: Hex[] = []
  for (let n = 0; n < 20; n++) ids.push(await fundedPod())
  const done = await Promise.all(
    Array.from({ length: 100 }, (_, n) =>
      apply(ids[n % 20] ?? '0x', small(`v${n}`), clients[n % 2] ?? clients[0]),
    ),
  )
  expect(done).toHaveLength(100)
  const apps = server.admin.makeApiClient(AppsV1Api)
  for (const id of ids) {
    const namespace = namespaceOf(chain.publisher, id)
    expect((await apps.listNamespacedDeployment({ namespace })).items).toHaveLength(1)
    const { summary } = await publisher().status(id)
    expect(summary?.state).not.toBe(1)
  }
}, 300_000)

test('it may not do what it need not: run commands, see nodes’ secrets, or change rights', async () => {
  const own = Kube.open({ kubeconfig })
  for (const object of [
    {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { namespace: 'default', name: 'p' },
      spec: { containers: [{ name: 'a', image: 'b' }] },
    },
    {
      apiVersion: 'rbac.authorization.k8s.io/v1',
      kind: 'ClusterRole',
      metadata: { name: 'mine' },
      rules: [],
    },
    { apiVersion: 'v1', kind: 'ConfigMap', metadata: { namespace: 'default', name: 'c' } },
  ]) {
    await expect(own.create(object)).rejects.toMatchObject({ code: 'PERMISSION_DENIED' })
  }
})
