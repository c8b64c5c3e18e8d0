import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, request } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { join } from 'node:path'
import type { V1Deployment } from '@kubernetes/client-node'
import { describe, expect, onTestFinished, test } from 'vitest'
import { parseConfig } from '../../../agent/config.ts'
import { ClusterError } from '../../../agent/deploy/cluster.ts'
import type { ClusterSettings } from '../../../agent/deploy/cluster-settings.ts'
import { DeployMetrics } from '../../../agent/deploy/deploy-metrics.ts'
import { KubeCluster } from '../../../agent/deploy/kube-cluster.ts'
import { kubernetesObjects } from '../../../agent/deploy/kubernetes-objects.ts'
import { PodError } from '../../../agent/deploy/parse-pod.ts'
import { namespaceOf } from '../../../agent/deploy/pod-namespace.ts'
import type { PodIdentity, PodSpec } from '../../../agent/deploy/pod-spec.ts'
import { ScaleDown } from '../../../agent/deploy/scale-down.ts'
import { SCALE_DOWN_LIMITS, scaleDownRoutes } from '../../../agent/deploy/scale-down-routes.ts'
import { HttpServer } from '../../../agent/http-server.ts'
import { MemoryCluster, type MemoryToken } from '../../support/memory-cluster.ts'
import { containerSpec, IDENTITY, podSpec } from '../../support/random-pod-spec.ts'
import { Scratch } from '../../support/scratch.ts'

// Goal: a pod puts itself to sleep, and nobody else. Method: the routes as the control worker serves them, over HTTP, on a cluster in memory
// that has two tenants, and knows the tokens that it gave out. What a real API server makes of tokens is tried in test/peers.

const SETTINGS: ClusterSettings = {
  routes: { kind: 'ingress' },
  keda: { namespace: 'keda', service: 'interceptor', port: 8_080 },
  scaleDown: {
    listen: { host: '127.0.0.1', port: 5_084 },
    url: 'http://ipdr-scale-down.ipdr-system.svc:5084',
  },
  namespace: 'ipdr-system',
  ingressNamespaces: ['ingress-nginx'],
  clusterCidrs: ['10.0.0.0/8'],
  userNamespaces: false,
}

const WEB = {
  name: 'web',
  containerPort: 80,
  servicePort: 80,
  exposure: { kind: 'http', host: 'a.example.com' },
} as const

const ADMIN = {
  ...WEB,
  name: 'admin',
  containerPort: 81,
  exposure: { kind: 'http', host: 'b.example.com' },
} as const

const SLEEPY: PodSpec = podSpec({
  containers: [containerSpec({ ports: [WEB] })],
  scaling: { min: 0, max: 3 },
})

const MINE: PodIdentity = IDENTITY
const THEIRS: PodIdentity = identityNumber(7)

function identityNumber(number: number): PodIdentity {
  const podId = `0x${number.toString(16).padStart(64, '0')}` as const
  const { publisher } = IDENTITY
  return { publisher, podId, namespace: namespaceOf(publisher, podId) }
}

const deploymentOf = ({ namespace }: PodIdentity): string =>
  `tpod-dep-${namespace.replace('tpod-', '')}`

type Answer = {
  readonly status: number
  readonly headers: Headers
  readonly body: {
    readonly error?: string
    readonly namespace?: string
    readonly replicas?: number
  }
}

/** Two tenants whose pods run, and where they ask to sleep. */
class Tenants {
  readonly cluster = new MemoryCluster()
  readonly specs = new Map<string, PodSpec>()
  readonly metrics = new DeployMetrics()
  readonly warnings: string[] = []
  /** Called where it is read what is asked for of a pod. */
  onSpec: () => void = () => undefined
  url = ''

  static async start(settings = SETTINGS): Promise<Tenants> {
    const tenants = new Tenants()
    const { cluster, specs, metrics, warnings } = tenants
    const log = {
      info: () => undefined,
      warn: (_facts: object, text: string) => warnings.push(text),
    }
    const specOf = async (namespace: string): Promise<PodSpec | undefined> => {
      tenants.onSpec()
      return specs.get(namespace)
    }
    const routes = scaleDownRoutes({
      scaleDown: new ScaleDown(settings, { cluster, specOf, log }),
      onAnswer: (status) => metrics.scaledDown(status),
      log,
    })
    const listen = { host: '127.0.0.1', port: 0 }
    const server = await HttpServer.listen(listen, routes, { limits: SCALE_DOWN_LIMITS })
    onTestFinished(() => server[Symbol.asyncDispose]())
    tenants.url = `${server.address}/v1/scale-to-zero`
    for (const identity of [MINE, THEIRS]) await tenants.run(identity)
    return tenants
  }

  /** A pod as it is while requests come: KEDA has given it replicas, of which `replica-0` is one. */
  async run(identity: PodIdentity, spec = SLEEPY): Promise<void> {
    const { namespace } = identity
    for (const object of kubernetesObjects(spec, identity, SETTINGS, { isNew: true })) {
      await this.cluster.apply(object)
    }
    this.specs.set(namespace, spec)
    if (!spec.isStateful) this.#setReplicas(identity, 2)
    await this.cluster.apply({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { namespace, name: 'replica-0' },
    })
  }

  wake(identity: PodIdentity): void {
    this.#setReplicas(identity, 1)
  }

  #setReplicas(identity: PodIdentity, replicas: number): void {
    this.cluster.set('Deployment', deploymentOf(identity), (object) => {
      Object.assign(object['spec'] as object, { replicas })
    })
  }

  replicas(identity: PodIdentity): number | undefined {
    const found = this.cluster.object('Deployment', deploymentOf(identity)) as V1Deployment
    return found.spec?.replicas
  }

  /** A token as the kubelet puts it into a replica, but for what is given. */
  token(identity: PodIdentity, given: Partial<MemoryToken> = {}): string {
    const text = ['e30', 'e30', randomBytes(400).toString('base64url')].join('.')
    this.cluster.tokens.set(text, {
      namespace: identity.namespace,
      account: 'tpod-sa',
      pod: 'replica-0',
      audience: 'ipdr-scale-down',
      expiresAtMs: Date.now() + 3_600_000,
      ...given,
    })
    return text
  }

  async ask(
    authorization: string | undefined,
    init: Omit<RequestInit, 'headers'> & { readonly headers?: Record<string, string> } = {},
  ): Promise<Answer> {
    const answer = await fetch(this.url, {
      method: 'POST',
      ...init,
      headers: { ...(authorization !== undefined && { authorization }), ...init.headers },
    })
    const { status, headers } = answer
    return { status, headers, body: (await answer.json()) as Answer['body'] }
  }

  get changes(): string[] {
    return this.cluster.calls.filter((call) => call.startsWith('scale'))
  }
}

describe('a pod that asks', () => {
  test('sleeps, and no other does; once it was woken it can ask again', async () => {
    const tenants = await Tenants.start()
    const token = tenants.token(MINE)
    const { status, body } = await tenants.ask(`Bearer ${token}`)
    expect({ status, body }).toEqual({
      status: 202,
      body: { namespace: MINE.namespace, replicas: 0 },
    })
    expect([tenants.replicas(MINE), tenants.replicas(THEIRS)]).toEqual([0, 2])
    tenants.wake(MINE)
    expect((await tenants.ask(`Bearer ${token}`)).status).toBe(202)
    expect(tenants.replicas(MINE)).toBe(0)
    const counted = await tenants.metrics.registry.metrics()
    expect(counted).toContain('ipdr_deploy_scale_downs_total{status="202"} 2')
  })

  test('twice is told so twice, and only the first time changes anything', async () => {
    const tenants = await Tenants.start()
    const token = tenants.token(MINE)
    expect((await tenants.ask(`Bearer ${token}`)).status).toBe(202)
    expect((await tenants.ask(`Bearer ${token}`)).status).toBe(202)
    expect(tenants.changes).toHaveLength(1)
  })

  test('may send any body, or none, as its client likes', async () => {
    for (const init of [
      { body: '{}', headers: { 'content-type': 'application/json' } },
      { headers: { 'content-type': 'application/json' } },
      { body: new URLSearchParams({ a: 'b' }) },
      { body: 'x'.repeat(1_024), headers: { 'content-type': 'whatever/it-is' } },
    ]) {
      const tenants = await Tenants.start()
      const { status } = await tenants.ask(`Bearer ${tenants.token(MINE)}`, init)
      expect(status, `with ${JSON.stringify(init)}`).toBe(202)
    }
  })

  test('more than once a second is told to wait, and others need not', async () => {
    const tenants = await Tenants.start()
    const ask = async (identity: PodIdentity): Promise<Answer> =>
      await tenants.ask(`Bearer ${tenants.token(identity)}`)
    const statuses: number[] = []
    for (let n = 0; n < 5; n++) statuses.push((await ask(MINE)).status)
    expect(statuses).toEqual([202, 202, 429, 429, 429])
    expect((await ask(MINE)).headers.get('retry-after')).toBe('1')
    expect((await ask(THEIRS)).status).toBe(202)
  })
})

describe('nobody is put to sleep', () => {
  /** What is answered; and that nothing has changed. */
  async function refused(tenants: Tenants, authorization: string | undefined): Promise<Answer> {
    const answer = await tenants.ask(authorization)
    expect(tenants.changes).toEqual([])
    expect([tenants.replicas(MINE), tenants.replicas(THEIRS)]).toEqual([2, 2])
    return answer
  }

  test.each<[string, Partial<MemoryToken>, number]>([
    ['of another audience', { audience: 'https://kubernetes.default.svc' }, 401],
    ['that has expired', { expiresAtMs: Date.now() - 1 }, 401],
    ['of a replica that is gone', { pod: 'replica-1' }, 401],
    ['of another account in the same namespace', { account: 'default' }, 403],
    ['of a namespace that is not a pod’s', { namespace: 'ipdr-system' }, 403],
    ['of a namespace that is gone', { namespace: identityNumber(9).namespace }, 403],
  ])('by a token %s', async (_name, given, status) => {
    const tenants = await Tenants.start()
    await tenants.cluster.apply({
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: { name: 'ipdr-system' },
    })
    const answer = await refused(tenants, `Bearer ${tenants.token(MINE, given)}`)
    expect(answer.status).toBe(status)
    expect(answer.body.error).toMatch(/\w+ \w+ \w+/)
    expect(answer.headers.get('www-authenticate')).toBe(status === 401 ? 'Bearer' : null)
  })

  test.each<[string, (token: string) => string | undefined]>([
    ['is missing', () => undefined],
    ['is empty', () => ''],
    ['has no token', () => 'Bearer '],
    ['is of another kind', (token) => `Basic ${token}`],
    ['has two tokens', (token) => `Bearer ${token} ${token}`],
    ['has what is in no token', (token) => `Bearer ${token.slice(0, -1)}!`],
    ['has 4,097 characters', (token) => `Bearer ${token.padEnd(4_097, 'A')}`],
  ])('by an Authorization that %s', async (_name, spoil) => {
    const tenants = await Tenants.start()
    const { status, body } = await refused(tenants, spoil(tenants.token(MINE)))
    expect(status).toBe(401)
    expect(body.error).toContain('/var/run/secrets/ipdr.dev/scale-down/token')
    expect(tenants.cluster.reviews).toBe(0)
  })

  test('by a token that was altered anywhere: the API server is asked about what was sent', async () => {
    const tenants = await Tenants.start()
    const token = tenants.token(MINE)
    const altered = [0, 4, 8, 100].map((index) => {
      const other = token[index] === 'A' ? 'B' : 'A'
      return token.slice(0, index) + other + token.slice(index + 1)
    })
    for (const text of [...altered, `${token}A`, token.slice(0, -1)]) {
      expect((await refused(tenants, `Bearer ${text}`)).status).toBe(401)
    }
    expect(tenants.cluster.reviews).toBe(6)
  })

  test.each<[string, PodSpec, ClusterSettings, RegExp]>([
    [
      'it is always on',
      { ...SLEEPY, scaling: { min: 1, max: 3 } },
      SETTINGS,
      /asks for 1 replicas at least; deploy it with scaling\.min 0/,
    ],
    [
      'it is stateful',
      { ...SLEEPY, scaling: { min: 1, max: 1 }, isStateful: true },
      SETTINGS,
      /is stateful/,
    ],
    [
      'a second host name would not wake it',
      { ...SLEEPY, containers: [containerSpec({ ports: [WEB, ADMIN] })] },
      SETTINGS,
      /would not be woken/,
    ],
    ['there is no KEDA', SLEEPY, { ...SETTINGS, keda: undefined }, /would not be woken/],
  ])('if %s, and the sentence says so', async (_name, spec, settings, sentence) => {
    const tenants = await Tenants.start(settings)
    tenants.specs.set(MINE.namespace, spec)
    const { status, body } = await refused(tenants, `Bearer ${tenants.token(MINE)}`)
    expect(status).toBe(409)
    expect(body.error).toMatch(sentence)
  })

  test('by a replica that is ending already: another may have been woken since', async () => {
    const tenants = await Tenants.start()
    tenants.cluster.set('Pod', 'replica-0', ({ metadata }) => {
      Object.assign(metadata as object, { deletionTimestamp: new Date() })
    })
    // The first object of that name, which is ours.
    expect((await refused(tenants, `Bearer ${tenants.token(MINE)}`)).status).toBe(409)
  })

  test('that is not there any more, or that the operator takes no more', async () => {
    const tenants = await Tenants.start()
    tenants.specs.delete(MINE.namespace)
    expect((await refused(tenants, `Bearer ${tenants.token(MINE)}`)).status).toBe(409)
    tenants.onSpec = () => {
      throw new PodError('INVALID_ARGUMENT', 'runtime_class: this cluster has none')
    }
    const { status, body } = await refused(tenants, `Bearer ${tenants.token(THEIRS)}`)
    expect([status, body.error]).toEqual([409, 'runtime_class: this cluster has none'])
  })

  test.each(['GET', 'PUT', 'DELETE', 'OPTIONS'])('by %s', async (method) => {
    const tenants = await Tenants.start()
    const authorization = `Bearer ${tenants.token(MINE)}`
    expect((await tenants.ask(authorization, { method })).status).toBe(404)
    expect(tenants.changes).toEqual([])
  })
})

describe('while somebody else changes the pod', () => {
  test('it sleeps if it still may, after another look', async () => {
    const tenants = await Tenants.start()
    let looks = 0
    tenants.onSpec = () => {
      if (++looks <= 2) tenants.wake(MINE)
    }
    expect((await tenants.ask(`Bearer ${tenants.token(MINE)}`)).status).toBe(202)
    expect([looks, tenants.replicas(MINE)]).toEqual([3, 0])
  })

  test('it does not sleep if that keeps it on from now on, whenever that comes', async () => {
    const tenants = await Tenants.start()
    let looks = 0
    tenants.onSpec = () => {
      if (++looks > 1) return
      // After this look, before the change.
      queueMicrotask(() => {
        tenants.specs.set(MINE.namespace, { ...SLEEPY, scaling: { min: 1, max: 1 } })
        tenants.wake(MINE)
      })
    }
    expect((await tenants.ask(`Bearer ${tenants.token(MINE)}`)).status).toBe(409)
    expect([looks, tenants.replicas(MINE)]).toEqual([2, 1])
  })

  test('all the time, it is told to ask again', async () => {
    const tenants = await Tenants.start()
    tenants.onSpec = () => tenants.wake(MINE)
    const { status, body } = await tenants.ask(`Bearer ${tenants.token(MINE)}`)
    expect(status).toBe(409)
    expect(body.error).toContain('is being changed at the moment')
  })
})

test.each<[string, ClusterError]>([
  ['is away', new ClusterError('UNAVAILABLE', 'connect ECONNREFUSED 10.96.0.1:443')],
  ['refuses us', new ClusterError('PERMISSION_DENIED', 'ipdr-deploy cannot create tokenreviews')],
])('an API that %s changes nothing, and a tenant does not hear what it said', async (_, error) => {
  for (const call of ['reviewToken', 'read', 'scale'] as const) {
    const tenants = await Tenants.start()
    const token = tenants.token(MINE)
    tenants.cluster[call] = () => Promise.reject(error)
    const { status, body, headers } = await tenants.ask(`Bearer ${token}`)
    expect([status, body.error, headers.get('retry-after')], `at ${call}`).toEqual([
      503,
      'the cluster cannot be asked at the moment; ask again',
      '1',
    ])
    expect(tenants.replicas(MINE)).toBe(2)
    expect(tenants.warnings).toEqual([`a pod cannot be put to sleep: ${error.message}`])
  }
})

test('a mistake of ours is no answer of the API, and is logged', async () => {
  const tenants = await Tenants.start()
  tenants.onSpec = () => {
    throw new TypeError('undefined is not a function')
  }
  const { status, body } = await tenants.ask(`Bearer ${tenants.token(MINE)}`)
  expect(status).toBe(500)
  expect(body.error).not.toContain('undefined')
  expect(tenants.warnings).toHaveLength(1)
})

describe('the API server', () => {
  test('is asked a few times only by 10,000 requests, whatever they show, and others are served after them', async () => {
    const tenants = await Tenants.start()
    const others = [tenants.token(THEIRS, { account: 'default' }), 'nothing', 'e30.e30.AA']
    const statuses = new Map<number, number>()
    for (let round = 0; round < 100; round++) {
      const answers = await Promise.all(
        Array.from({ length: 100 }, (_, n) => tenants.ask(`Bearer ${others[n % others.length]}`)),
      )
      for (const { status } of answers) statuses.set(status, (statuses.get(status) ?? 0) + 1)
    }
    expect([...statuses.keys()].toSorted((a, b) => a - b)).toEqual([401, 403, 429])
    expect(statuses.get(429)).toBeGreaterThan(9_000)
    expect(tenants.cluster.reviews).toBeLessThan(1_000)
    expect(tenants.changes).toEqual([])
    await expect
      .poll(async () => (await tenants.ask(`Bearer ${tenants.token(MINE)}`)).status, {
        timeout: 10_000,
        interval: 250,
      })
      .toBe(202)
  }, 120_000)

  test('is asked by 64 at once, if it does not answer; who comes after them is told to wait', async () => {
    const tenants = await Tenants.start()
    const held = Promise.withResolvers<undefined>()
    tenants.cluster.reviewToken = async () => {
      tenants.cluster.reviews++
      return await held.promise
    }
    const statuses: (number | undefined)[] = []
    const agents = Array.from({ length: 70 }, async (_, n) => {
      statuses.push(await askFrom(`127.0.1.${n + 1}`, tenants.url))
    })
    // The others wait.
    await expect.poll(() => statuses, { timeout: 10_000 }).toEqual(Array(6).fill(503))
    expect(tenants.cluster.reviews).toBe(64)
    held.resolve(undefined)
    await Promise.all(agents)
    expect(statuses.slice(6)).toEqual(Array(64).fill(401))
  })
})

/** With another address of loopback. Resolves to the status. */
async function askFrom(localAddress: string, url: string): Promise<number | undefined> {
  const asked = request(url, {
    method: 'POST',
    localAddress,
    headers: { authorization: 'Bearer a.b.c' },
  })
  asked.end()
  const [answer] = (await once(asked, 'response')) as [IncomingMessage]
  answer.resume()
  return answer.statusCode
}

// A cluster may have authenticators that know nothing of audiences, and users who only look like accounts.
test('a token is whose the API server says, if it says so whole', async () => {
  const good = {
    authenticated: true,
    audiences: ['ipdr-scale-down'],
    user: {
      username: 'system:serviceaccount:tpod-a:tpod-sa',
      extra: { 'authentication.kubernetes.io/pod-name': ['replica-0'] },
    },
  }
  const { user } = good
  let status: object = good
  const server = createServer((request, response) => {
    request.resume()
    response.writeHead(201, { 'content-type': 'application/json' })
    response.end(JSON.stringify({ kind: 'TokenReview', spec: {}, status }))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  await using scratch = Scratch.open('token-review')
  const kubeconfig = join(scratch.dir, 'kubeconfig')
  const { port } = server.address() as AddressInfo
  const cluster = { server: `http://127.0.0.1:${port}`, 'insecure-skip-tls-verify': true }
  writeFileSync(
    kubeconfig,
    JSON.stringify({
      clusters: [{ name: 'c', cluster }],
      users: [{ name: 'u', user: { token: 'none' } }],
      contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
      'current-context': 'x',
    }),
  )
  const kube = KubeCluster.open({ kubeconfig })
  const said = async (answer: object): Promise<unknown> => {
    status = answer
    return await kube.reviewToken('a.b.c', 'ipdr-scale-down')
  }
  expect(await said(good)).toEqual({ namespace: 'tpod-a', account: 'tpod-sa', pod: 'replica-0' })
  for (const less of [
    {},
    { error: 'invalid bearer token' },
    { ...good, authenticated: false },
    { ...good, audiences: undefined },
    { ...good, audiences: ['https://kubernetes.default.svc'] },
    { ...good, user: undefined },
    { ...good, user: { ...user, extra: undefined } },
    { ...good, user: { ...user, username: 'admin' } },
    { ...good, user: { ...user, username: 'x:system:serviceaccount:tpod-a:tpod-sa' } },
    { ...good, user: { ...user, username: 'system:serviceaccount:tpod-a:tpod-sa:x' } },
  ]) {
    expect(await said(less), `by ${JSON.stringify(less)}`).toBeUndefined()
  }
})

describe('what is too much is not read', () => {
  test('a body', async () => {
    const tenants = await Tenants.start()
    const authorization = `Bearer ${tenants.token(MINE)}`
    const { status, body } = await tenants.ask(authorization, { body: 'x'.repeat(1_025) })
    expect(status).toBe(413)
    expect(body.error).toContain('too large')
    expect(tenants.changes).toEqual([])
  })

  test('headers', async () => {
    const tenants = await Tenants.start()
    const authorization = `Bearer ${tenants.token(MINE)}`
    const headers = { 'x-filler': 'x'.repeat(9_000) }
    const answer = await fetch(tenants.url, {
      method: 'POST',
      headers: { authorization, ...headers },
    })
    expect(answer.status).toBe(431)
    expect(tenants.changes).toEqual([])
  })

  test('a request that never ends', async () => {
    const tenants = await Tenants.start()
    const { hostname, port } = new URL(tenants.url)
    const socket = connect(Number(port), hostname)
    socket.write('POST /v1/scale-to-zero HTTP/1.1\r\nHost: a\r\nX-A: ')
    let text = ''
    socket.on('data', (data) => (text += data.toString()))
    await once(socket, 'close')
    expect(text).toContain(' 408 ')
  }, 30_000)
})

describe('the configuration', () => {
  const parsed = (changes: object): ReturnType<typeof parseConfig>['deploy'] =>
    parseConfig({
      deploy: {
        operator: `0x${'1'.repeat(40)}`,
        chain: { id: 1, rpc: ['http://127.0.0.1:8545'] },
        offers: [{ contract: `0x${'2'.repeat(40)}`, token: `0x${'3'.repeat(40)}` }],
        ...changes,
      },
    }).deploy
  const scaleDown = { listen: '0.0.0.0:5084', url: 'http://ipdr-scale-down.ipdr-system.svc:5084/' }

  test('says where it listens and what pods call, to which they add a path', () => {
    expect(parsed({ keda: {}, scaleDown })?.scaleDown).toEqual({
      listen: { host: '0.0.0.0', port: 5_084 },
      url: 'http://ipdr-scale-down.ipdr-system.svc:5084',
    })
    expect(parsed({})?.scaleDown).toBeUndefined()
  })

  test.each([
    [{ scaleDown }, /deploy\.scaleDown: needs keda, since nothing else wakes a pod/],
    [
      { keda: {}, scaleDown: { ...scaleDown, listen: '0.0.0.0:0' } },
      /deploy\.scaleDown\.listen: must have a port other than 0/,
    ],
    [{ keda: {}, scaleDown: { ...scaleDown, listen: 'localhost:1' } }, /must be IP:port/],
    [{ keda: {}, scaleDown: { ...scaleDown, url: 'ftp://a' } }, /deploy\.scaleDown\.url/],
    [{ keda: {}, scaleDown: { ...scaleDown, url: 'http://a/?b' } }, /must have no \?/],
    [{ keda: {}, scaleDown: { listen: '0.0.0.0:1' } }, /deploy\.scaleDown\.url/],
  ])('is refused: %j', (changes, sentence) => {
    expect(() => parsed(changes)).toThrow(sentence)
  })
})
