import { sign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { create, toBinary } from '@bufbuild/protobuf'
import {
  ApiextensionsV1Api,
  AppsV1Api,
  CoreV1Api,
  type V1Deployment,
} from '@kubernetes/client-node'
import { pino } from 'pino'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { type Config, parseConfig } from '../../agent/config.ts'
import { runControlWorker } from '../../agent/control-worker.ts'
import { Deployments } from '../../agent/deploy/deployments.ts'
import { HostClaims } from '../../agent/deploy/host-claims.ts'
import { KubeCluster } from '../../agent/deploy/kube-cluster.ts'
import { kubernetesObjects } from '../../agent/deploy/kubernetes-objects.ts'
import { namespaceOf } from '../../agent/deploy/pod-namespace.ts'
import type { PodIdentity } from '../../agent/deploy/pod-spec.ts'
import { PodTurns } from '../../agent/deploy/pod-turns.ts'
import { PodSchema } from '../../proto/messages/ipdr/deploy_pb.js'
import { freePort } from '../support/agent.ts'
import { deployAccount, deployRules } from '../support/deploy-account.ts'
import { type KubeAccount, KubeApiServer } from '../support/kube-apiserver.ts'
import { KubeControllers } from '../support/kube-controllers.ts'
import { IDENTITY } from '../support/random-pod-spec.ts'
import { Scratch } from '../support/scratch.ts'
import { silentLog } from '../support/silent-log.ts'

// Goal: a pod puts itself to sleep in a real cluster, nobody else's pod, and nobody who has no token of it; then it sleeps until it is woken.
// Method: the control worker as it is started, with the rights that node-image/kubernetes gives it, beside a kube-apiserver and its
// controllers. Tokens are those of the TokenRequest API, as the kubelet asks for them. There is no KEDA: the test scales as it does.

const patience = { timeout: 60_000, interval: 100 }
const AUDIENCE = 'ipdr-scale-down'

const opened = new AsyncDisposableStack()
let server: KubeApiServer
let account: KubeAccount
let core: CoreV1Api
let apps: AppsV1Api
let config: NonNullable<Config['deploy']>
let deployments: Deployments
let pods = 0

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('scale-down'))
  server = opened.use(await KubeApiServer.start(scratch))
  opened.use(await KubeControllers.start(scratch, server))
  core = server.admin.makeApiClient(CoreV1Api)
  apps = server.admin.makeApiClient(AppsV1Api)
  await defineScaledObjects()
  account = await deployAccount(server)
  await startWorker(scratch)
}, 900_000)

afterAll(async () => await opened.disposeAsync(), 120_000)

async function startWorker(scratch: Scratch): Promise<void> {
  const [port, monitoring] = [await freePort(), await freePort()]
  const address = `0x${'1'.repeat(40)}`
  const whole = parseConfig({
    root: join(scratch.dir, 'agent'),
    runDir: join(scratch.dir, 'run'),
    deploy: {
      listen: ['/ip4/127.0.0.1/tcp/0'],
      kubeconfig: account.kubeconfig,
      monitoring: { listen: `127.0.0.1:${monitoring}` },
      operator: address,
      // No chain is asked about pods that want to sleep.
      chain: { id: 1, rpc: ['http://127.0.0.1:1'] },
      offers: [{ contract: address, token: address }],
      keda: {},
      scaleDown: { listen: `127.0.0.1:${port}`, url: `http://127.0.0.1:${port}` },
    },
  })
  if (whole.deploy === undefined) throw new Error('no deploy')
  config = whole.deploy
  const stop = new AbortController()
  const running = runControlWorker(whole, stop.signal, pino({ level: 'silent' }))
  opened.defer(async () => {
    stop.abort()
    await running
  })
  const isReady = async (): Promise<boolean> =>
    await fetch(`http://127.0.0.1:${monitoring}/readyz`).then(
      ({ ok }) => ok,
      () => false,
    )
  await Promise.race([running, vi.waitUntil(isReady, patience)])
  const cluster = KubeCluster.open(config)
  deployments = new Deployments({
    cluster,
    turns: new PodTurns(config.namespace, { cluster, log: silentLog }),
    hosts: new HostClaims(config.namespace, { cluster }),
    limits: { runtimeClasses: [], hostSuffixes: [], hasRoutes: true },
    objectsOf: (spec, identity, options) => kubernetesObjects(spec, identity, config, options),
    log: silentLog,
  })
}

/** KEDA's kind, of which it does not matter here what is in it. */
async function defineScaledObjects(): Promise<void> {
  const api = server.admin.makeApiClient(ApiextensionsV1Api)
  const name = 'httpscaledobjects.http.keda.sh'
  const anything = { type: 'object', x_kubernetes_preserve_unknown_fields: true }
  const openAPIV3Schema = { type: 'object', properties: { spec: anything } }
  await api.createCustomResourceDefinition({
    body: {
      metadata: { name },
      spec: {
        group: 'http.keda.sh',
        scope: 'Namespaced',
        names: {
          kind: 'HTTPScaledObject',
          plural: 'httpscaledobjects',
          singular: 'httpscaledobject',
        },
        versions: [{ name: 'v1alpha1', served: true, storage: true, schema: { openAPIV3Schema } }],
      },
    },
  })
  await vi.waitUntil(async () => {
    const { status } = await api.readCustomResourceDefinition({ name })
    return status?.conditions?.some((one) => one.type === 'Established' && one.status === 'True')
  }, patience)
}

type Asked = { readonly min?: number; readonly max?: number; readonly command?: string }

/** As a publisher has it deployed. */
async function deploy(
  identity: PodIdentity,
  { min = 0, max = 3, command = 'a' }: Asked = {},
): Promise<void> {
  const pod = create(PodSchema, {
    name: 'shop',
    containers: [
      {
        name: 'web',
        image: 'ghcr.io/some/image:1',
        arguments: [command],
        cpuMillis: 10,
        memoryBytes: 2n ** 26n,
        ports: [
          {
            name: 'http',
            containerPort: 8080,
            exposure: { case: 'httpHost', value: `${identity.namespace}.example.com` },
          },
        ],
      },
    ],
    scaling: { min, max },
  })
  await deployments.deploy(identity, toBinary(PodSchema, pod), 'either')
}

/** A new tenant whose pod runs, woken by a request. */
async function tenant(options?: Asked): Promise<PodIdentity> {
  const { publisher } = IDENTITY
  const podId = `0x${(++pods).toString(16).padStart(64, '0')}` as const
  const identity = { publisher, podId, namespace: namespaceOf(publisher, podId) }
  await deploy(identity, options)
  await scaleAsKeda(identity, 1)
  await replicaOf(identity)
  return identity
}

async function deploymentOf({ namespace }: PodIdentity): Promise<V1Deployment> {
  const [found] = (await apps.listNamespacedDeployment({ namespace })).items
  if (found === undefined) throw new Error('no Deployment')
  return found
}

async function wanted(identity: PodIdentity): Promise<number | undefined> {
  return (await deploymentOf(identity)).spec?.replicas
}

async function scaleAsKeda(identity: PodIdentity, replicas: number): Promise<void> {
  const { namespace } = identity
  const name = (await deploymentOf(identity)).metadata?.name ?? ''
  const body = { metadata: { name, namespace }, spec: { replicas } }
  const fieldManager = 'keda'
  await apps.replaceNamespacedDeploymentScale({ namespace, name, body, fieldManager })
}

type Replica = { readonly name: string; readonly uid: string }

/** A replica, once its controller has made one; of the deployment with this command, if it is given. */
async function replicaOf({ namespace }: PodIdentity, command?: string): Promise<Replica> {
  let found: Replica | undefined
  await vi.waitUntil(async () => {
    const { items } = await core.listNamespacedPod({ namespace })
    const pod = items.find(
      ({ metadata, spec }) =>
        metadata?.deletionTimestamp === undefined &&
        (command === undefined || spec?.containers[0]?.args?.[0] === command),
    )
    const { name, uid } = pod?.metadata ?? {}
    if (name !== undefined && uid !== undefined) found = { name, uid }
    return found !== undefined
  }, patience)
  return found ?? { name: '', uid: '' }
}

type TokenOptions = {
  readonly audience?: string
  readonly account?: string
  readonly replica?: Replica | undefined
}

/** As the kubelet asks for it: bound to a replica, if there is one given. */
async function tokenOf(
  { namespace }: PodIdentity,
  { audience = AUDIENCE, account: name = 'tpod-sa', replica }: TokenOptions,
): Promise<string> {
  const boundObjectRef = { apiVersion: 'v1', kind: 'Pod', ...replica }
  const { status } = await core.createNamespacedServiceAccountToken({
    namespace,
    name,
    body: {
      spec: {
        audiences: [audience],
        expirationSeconds: 3_600,
        ...(replica !== undefined && { boundObjectRef }),
      },
    },
  })
  return status?.token ?? ''
}

async function ownToken(identity: PodIdentity): Promise<string> {
  return await tokenOf(identity, { replica: await replicaOf(identity) })
}

type Answer = {
  readonly status: number
  readonly namespace?: string
  readonly replicas?: number
  readonly error?: string
}

/** As a pod asks; again where it is told that too many ask, since all that tests ask comes from one address. */
async function ask(token: string): Promise<Answer> {
  let answer: Answer = { status: 429 }
  await vi.waitUntil(async () => {
    const response = await fetch(`${config.scaleDown?.url}/v1/scale-to-zero`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}` },
    })
    const { status } = response
    answer = { status, ...((await response.json()) as object) }
    return answer.status !== 429
  }, patience)
  return answer
}

test('a replica gets the token and the address, and is let in with them', async () => {
  const identity = await tenant()
  const { namespace } = identity
  const { name } = await replicaOf(identity)
  const { spec } = await core.readNamespacedPod({ namespace, name })
  const [container] = spec?.containers ?? []
  expect(container?.env).toEqual([{ name: 'IPDR_SCALE_DOWN_URL', value: config.scaleDown?.url }])
  expect(container?.volumeMounts?.map(({ mountPath }) => mountPath)).toEqual([
    '/var/run/secrets/ipdr.dev/scale-down',
  ])
  expect(spec?.volumes?.[0]?.projected?.sources?.[0]?.serviceAccountToken).toEqual({
    audience: AUDIENCE,
    expirationSeconds: 3_600,
    path: 'token',
  })
})

test('a pod that asks sleeps, and the others go on', async () => {
  const [mine, theirs] = [await tenant(), await tenant()]
  expect(await ask(await ownToken(mine))).toEqual({
    status: 202,
    namespace: mine.namespace,
    replicas: 0,
  })
  expect(await wanted(mine)).toBe(0)
  const { namespace } = mine
  await expect
    .poll(async () => (await core.listNamespacedPod({ namespace })).items.length, patience)
    .toBe(0)
  expect(await wanted(theirs)).toBe(1)
  // And the other way round.
  await scaleAsKeda(mine, 1)
  expect((await ask(await ownToken(theirs))).namespace).toBe(theirs.namespace)
  expect([await wanted(mine), await wanted(theirs)]).toEqual([1, 0])
})

test('it sleeps through its deployments, unless one of them keeps it on', async () => {
  const identity = await tenant()
  expect((await ask(await ownToken(identity))).status).toBe(202)
  for (const command of ['a', 'b', 'c']) {
    await deploy(identity, { command })
    expect(await wanted(identity), `with ${command}`).toBe(0)
  }
  const template = (await deploymentOf(identity)).spec?.template.spec?.containers[0]
  expect(template?.args).toEqual(['c'])
  await deploy(identity, { min: 3 })
  expect(await wanted(identity)).toBe(3)
})

test('it sleeps through them too if it was always on before, when the number of replicas was ours to say', async () => {
  const identity = await tenant({ min: 1, max: 1 })
  await deploy(identity, { min: 0 })
  expect(await wanted(identity)).toBe(1)
  expect((await ask(await ownToken(identity))).status).toBe(202)
  await deploy(identity, { min: 0, command: 'b' })
  expect(await wanted(identity)).toBe(0)
})

test('it wakes as KEDA wakes it, and is not put to sleep again by its deployments, or by who was there before', async () => {
  const identity = await tenant()
  const old = await ownToken(identity)
  expect((await ask(old)).status).toBe(202)
  const { namespace } = identity
  await expect
    .poll(async () => (await core.listNamespacedPod({ namespace })).items.length, patience)
    .toBe(0)
  await scaleAsKeda(identity, 1)
  expect((await ask(old)).status).toBe(401)
  await deploy(identity, { command: 'b' })
  await scaleAsKeda(identity, 2)
  await deploy(identity, { command: 'c' })
  expect(await wanted(identity)).toBe(2)
  // The server has other managers give the number of replicas up; what counts is that we are none of them.
  const { managedFields = [] } = (await deploymentOf(identity)).metadata ?? {}
  const fields = managedFields.find(({ manager }) => manager === 'ipdr-agent')?.fieldsV1
  expect(fields).toMatchObject({ 'f:spec': { 'f:template': {} } })
  expect(fields).not.toHaveProperty(['f:spec', 'f:replicas'])
  // One of the last deployment: its controller is still taking those before it away.
  const replica = await replicaOf(identity, 'c')
  expect((await ask(await tokenOf(identity, { replica }))).status).toBe(202)
})

test('a pod that is always on stays on, whatever it asks', async () => {
  const identity = await tenant({ min: 1 })
  const { status, error } = await ask(await ownToken(identity))
  expect([status, error]).toEqual([
    409,
    'the pod asks for 1 replicas at least; deploy it with scaling.min 0',
  ])
  expect(await wanted(identity)).toBe(1)
})

/** A token with other claims, signed with the key that the API server itself signs with. */
function signedAnew(token: string, claims: object): string {
  const [header = '', payload = ''] = token.split('.')
  const before = JSON.parse(Buffer.from(payload, 'base64url').toString()) as object
  const after = Buffer.from(JSON.stringify({ ...before, ...claims })).toString('base64url')
  const key = { key: readFileSync(server.accountsKeyFile), dsaEncoding: 'ieee-p1363' } as const
  const signature = sign('sha256', Buffer.from(`${header}.${after}`), key)
  return `${header}.${after}.${signature.toString('base64url')}`
}

test('nobody is put to sleep by a token that is not of a replica, for this, now, and unaltered', async () => {
  const [identity, other] = [await tenant(), await tenant()]
  const replica = await replicaOf(identity)
  const { namespace } = identity
  await core.createNamespacedServiceAccount({ namespace, body: { metadata: { name: 'helper' } } })
  const token = await tokenOf(identity, { replica })
  const [header = '', payload = '', signature = ''] = token.split('.')
  const flipped = signature.replace(/^./, (first) => (first === 'A' ? 'B' : 'A'))
  const [, othersPayload] = (await ownToken(other)).split('.')
  const now = Math.floor(Date.now() / 1_000)
  const hostile: Readonly<Record<string, readonly [number, string]>> = {
    'for the API': [
      401,
      await tokenOf(identity, { audience: 'https://kubernetes.default.svc', replica }),
    ],
    'for somebody else': [401, await tokenOf(identity, { audience: 'vault', replica })],
    'of no replica': [401, await tokenOf(identity, {})],
    'of another account, of no replica': [401, await tokenOf(identity, { account: 'helper' })],
    'with another signature': [401, `${header}.${payload}.${flipped}`],
    'with another tenant’s claims': [401, `${header}.${othersPayload}.${signature}`],
    'without a signature': [
      401,
      `${Buffer.from('{"alg":"none"}').toString('base64url')}.${payload}.`,
    ],
    'that has expired': [
      401,
      signedAnew(token, { iat: now - 7_200, nbf: now - 7_200, exp: now - 60 }),
    ],
    'that is not good yet': [401, signedAnew(token, { nbf: now + 600 })],
    'that is none': [401, 'a.b.c'],
  }
  for (const [name, [status, text]] of Object.entries(hostile)) {
    expect.soft((await ask(text)).status, name).toBe(status)
  }
  expect([await wanted(identity), await wanted(other)]).toEqual([1, 1])
  // What is signed anew is good as long as its claims are.
  expect((await ask(signedAnew(token, { jti: 'another' }))).status).toBe(202)
})

test('another account puts nobody to sleep: of a tenant’s own namespace, or of the same name elsewhere', async () => {
  const identity = await tenant()
  const { namespace } = identity
  await server.namespace('stranger')
  const elsewhere = { ...IDENTITY, namespace: 'stranger' }
  const [own, name] = [await replicaOf(identity), 'another']
  const { spec } = await core.readNamespacedPod({ namespace, name: own.name })
  for (const [place, account] of [
    [identity, 'helper'],
    [elsewhere, 'tpod-sa'],
  ] as const) {
    const { namespace } = place
    await core.createNamespacedServiceAccount({ namespace, body: { metadata: { name: account } } })
    const body = {
      metadata: { name },
      spec: Object.assign(structuredClone(spec) ?? { containers: [] }, {
        serviceAccountName: account,
        serviceAccount: account,
      }),
    }
    const { metadata } = await core.createNamespacedPod({ namespace, body })
    const token = await tokenOf(place, { account, replica: { name, uid: metadata?.uid ?? '' } })
    expect((await ask(token)).status, `by ${account}`).toBe(403)
  }
  expect(await wanted(identity)).toBe(1)
})

test('a Deployment that somebody has changed since it was read is left alone, as is one that is gone', async () => {
  const identity = await tenant()
  const { namespace } = identity
  const { name = '', resourceVersion = '' } = (await deploymentOf(identity)).metadata ?? {}
  await scaleAsKeda(identity, 2)
  const cluster = KubeCluster.open(config)
  expect(await cluster.scale({ namespace, name, resourceVersion }, 0)).toBe(false)
  expect(await wanted(identity)).toBe(2)
  expect(await cluster.scale({ namespace, name: 'gone', resourceVersion }, 0)).toBe(false)
})

test('both rights that the worker is given for it are needed, and no tenant hears that one is missing', async () => {
  const identity = await tenant()
  const token = await ownToken(identity)
  for (const resource of ['tokenreviews', 'deployments/scale']) {
    const others = deployRules.filter(({ resources }) => resources?.[0] !== resource)
    expect(others).toHaveLength(deployRules.length - 1)
    await account.allow(others)
    const { status, error } = await ask(token)
    expect([status, error]).toEqual([503, 'the cluster cannot be asked at the moment; ask again'])
    expect(await wanted(identity)).toBe(1)
  }
  await account.allow(deployRules)
  expect((await ask(token)).status).toBe(202)
})

test('ten that ask at once put their pod to sleep, and are told so or to wait', async () => {
  const identity = await tenant()
  const token = await ownToken(identity)
  const answers = await Promise.all(Array.from({ length: 10 }, () => ask(token)))
  expect(answers.map(({ status }) => status)).toContain(202)
  // Those that come later find that their replica is gone.
  for (const { status } of answers) expect([202, 401, 409]).toContain(status)
  expect(await wanted(identity)).toBe(0)
})

test('an API that is away changes nothing; once it is back, the pod can ask again', async () => {
  const identity = await tenant()
  const token = await ownToken(identity)
  await server.kill()
  expect((await ask(token)).status).toBe(503)
  await server.start()
  expect(await wanted(identity)).toBe(1)
  await expect.poll(async () => (await ask(token)).status, patience).toBe(202)
}, 180_000)
