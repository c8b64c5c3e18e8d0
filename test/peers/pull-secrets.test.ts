import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { CoreV1Api, loadYaml, type V1ClusterRole, type V1PolicyRule } from '@kubernetes/client-node'
import pino from 'pino'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { parseConfig } from '../../agent/config.ts'
import type { ClusterConfig } from '../../agent/registries/cluster-watch.ts'
import { openRegistries } from '../../agent/registries/open-registries.ts'
import { authsOf, type ClusterReader, readCluster } from '../support/cluster-reader.ts'
import { failureOf } from '../support/failure-of.ts'
import { layoutOfBlobs } from '../support/images/layout-of-blobs.ts'
import { KubeApiServer } from '../support/kube-apiserver.ts'
import { KubeRelay } from '../support/kube-relay.ts'
import { startOciRegistry } from '../support/oci-registry.ts'
import { Scratch } from '../support/scratch.ts'

// Goal: what the agent believes of a cluster is true of a real one. Method: a kube-apiserver with RBAC on an etcd of its own, and no
// more rights than docs/registries.md asks for. Tests share the server, and have namespaces and accounts of their own.

let scratch: Scratch
let server: KubeApiServer
let core: CoreV1Api

beforeAll(async () => {
  scratch = Scratch.open('pull-secrets')
  server = await KubeApiServer.start(scratch)
  core = server.admin.makeApiClient(CoreV1Api)
}, 900_000)

afterAll(() => scratch[Symbol.asyncDispose]())

const patience = { timeout: 50_000 }

/** The rights that the documentation tells operators to give. */
const documented: readonly V1PolicyRule[] = (() => {
  const page = readFileSync(join(import.meta.dirname, '../../docs/registries.md'), 'utf8')
  const [, yaml = ''] = /^```yaml\n(.*?)^```$/ms.exec(page) ?? []
  return loadYaml<V1ClusterRole>(yaml).rules ?? []
})()

type Content = { readonly type: string; readonly data: Record<string, string> }

const base64 = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64')

const ofConfig = (password: string, host?: string): Content => ({
  type: 'kubernetes.io/dockerconfigjson',
  data: { '.dockerconfigjson': base64(authsOf(password, host)) },
})

const ofDockercfg = (password: string): Content => ({
  type: 'kubernetes.io/dockercfg',
  data: { '.dockercfg': base64(authsOf(password).auths) },
})

async function put(namespace: string, name: string, content: Content): Promise<void> {
  await core.createNamespacedSecret({ namespace, body: { metadata: { name }, ...content } })
}

async function change(namespace: string, name: string, content: Content): Promise<void> {
  await core.replaceNamespacedSecret({ namespace, name, body: { metadata: { name }, ...content } })
}

async function remove(namespace: string, name: string): Promise<void> {
  await core.deleteNamespacedSecret({ namespace, name })
}

/** The agent, by an account that may do what is documented. */
function reading(config: ClusterConfig): ClusterReader {
  const reader = readCluster(config)
  onTestFinished(() => reader[Symbol.asyncDispose]())
  return reader
}

async function relayed(): Promise<KubeRelay> {
  const relay = await KubeRelay.start(server.url, server.certificate)
  onTestFinished(() => relay[Symbol.asyncDispose]())
  return relay
}

test('the documented rights are enough for both types of secrets, each for its own namespace', async () => {
  const { kubeconfig } = await server.account('documented', documented)
  await server.namespace('first')
  await server.namespace('second')
  await put('first', 'b', ofConfig('2'))
  await put('first', 'a', ofDockercfg('1'))
  await put('second', 'a', ofConfig('3'))
  await put('second', 'other', ofConfig('4', 'other.example'))
  await put('second', 'opaque', { ...ofConfig('5'), type: 'Opaque' })
  const { shown, log } = reading({ kubeconfig, nodeName: 'here' })
  expect(await shown('first')).toEqual([
    'u:1 of pull secret first/a (r.example)',
    'u:2 of pull secret first/b (r.example)',
  ])
  expect(await shown('second')).toEqual(['u:3 of pull secret second/a (r.example)'])
  expect(await shown('third')).toEqual([])
  expect(log.sentences).toEqual([])
})

test('a secret that is made, changed or deleted counts at once', async () => {
  const { kubeconfig } = await server.account('changes', documented)
  await server.namespace('changes')
  const { shown } = reading({ kubeconfig })
  expect(await shown('changes')).toEqual([])
  for (const of of [ofConfig, ofDockercfg]) {
    await put('changes', 'a', of('1'))
    await expect
      .poll(() => shown('changes'), patience)
      .toEqual(['u:1 of pull secret changes/a (r.example)'])
    await change('changes', 'a', of('2'))
    await expect
      .poll(() => shown('changes'), patience)
      .toEqual(['u:2 of pull secret changes/a (r.example)'])
    await remove('changes', 'a')
    await expect.poll(() => shown('changes'), patience).toEqual([])
  }
})

test('where rights are given in some namespaces only, those are enough if they are named', async () => {
  const namespaces = ['given-one', 'given-two']
  for (const name of [...namespaces, 'not-given']) await server.namespace(name)
  const { kubeconfig } = await server.account('some', documented, { namespaces })
  for (const name of [...namespaces, 'not-given']) {
    await put(name, 'a', ofConfig(name))
    await makePod(name, 'p', 'r.example/team/app:1', 'some-node')
  }
  const { shown, pods, log } = reading({ kubeconfig, namespaces, nodeName: 'some-node' })
  expect(await shown(...namespaces, 'not-given')).toEqual([
    'u:given-one of pull secret given-one/a (r.example)',
    'u:given-two of pull secret given-two/a (r.example)',
  ])
  await expect
    .poll(() => pods.namespacesPulling('r.example/team/app:1'), patience)
    .toEqual(namespaces)
  expect(log.sentences).toEqual([])
})

async function makePod(
  namespace: string,
  name: string,
  image: string,
  nodeName?: string,
): Promise<void> {
  const spec = { containers: [{ name: 'c', image }], ...(nodeName && { nodeName }) }
  await core.createNamespacedPod({ namespace, body: { metadata: { name }, spec } })
}

test('a private image is read with the secrets of the pods that are bound to this node, and with no others', async () => {
  const auth = { kind: 'htpasswd', logins: [{ username: 'u', password: 'right' }] } as const
  await using registry = await startOciRegistry(scratch, { auth })
  const layout = layoutOfBlobs(join(scratch.dir, 'layout'), [])
  const image = await registry.push(layout, 'team/app')
  const { kubeconfig } = await server.account('private', documented)
  for (const name of ['bound', 'elsewhere', 'wrong']) await server.namespace(name)
  await put('bound', 'pull', ofConfig('right', registry.host))
  await put('elsewhere', 'pull', ofConfig('right', registry.host))
  await put('wrong', 'pull', ofConfig('wrong', registry.host))
  await makePod('elsewhere', 'p', image, 'another-node')
  await makePod('bound', 'p', image)
  const { registries: config } = parseConfig({
    registries: {
      hosts: { [registry.host]: { insecure: true } },
      credentials: { pullSecrets: { kubeconfig, nodeName: 'this-node' } },
    },
  })
  const metrics = { registryReceived: () => {}, registryLoginRefused: () => {} }
  const log = pino({ level: 'silent' })
  await using registries = await openRegistries(config, { log, metrics })
  const { images } = registries
  const read = (namespaces: readonly string[]): Promise<unknown> =>
    images.manifest(
      { host: registry.host, repository: 'team/app', namespaces },
      layout.tag,
      AbortSignal.timeout(50_000),
    )
  // As the scheduler does it.
  const target = { apiVersion: 'v1', kind: 'Node', name: 'this-node' }
  const body = { metadata: { name: 'p' }, target }
  await core.createNamespacedPodBinding({ namespace: 'bound', name: 'p', body })
  await expect.poll(() => images.namespacesPulling(image), patience).toEqual(['bound'])
  await read(images.namespacesPulling(image))
  expect(await failureOf(() => read(['wrong']))).toMatchObject({ code: 'PERMISSION_DENIED' })
  expect(await failureOf(() => read([]))).toMatchObject({ code: 'PERMISSION_DENIED' })
  await core.deleteNamespacedPod({ namespace: 'bound', name: 'p', gracePeriodSeconds: 0 })
  await expect.poll(() => images.namespacesPulling(image), patience).toEqual([])
})

test('an account without the rights is told what to do, and what can be read is; once it has them, all is', async () => {
  const [secretsRule] = documented
  if (secretsRule === undefined) throw new Error('no rule')
  const account = await server.account('few', [secretsRule])
  await server.namespace('few')
  await put('few', 'a', ofConfig('1'))
  await makePod('few', 'p', 'r.example/team/app:1', 'few-node')
  const { shown, pods, log } = reading({ kubeconfig: account.kubeconfig, nodeName: 'few-node' })
  await expect.poll(() => log.sentences, patience).toHaveLength(1)
  expect(log.sentences[0]).toBe(
    'pods of this node cannot be read from the cluster (HTTP 403), allow the account of the agent to list and watch them ' +
      'as docs/registries.md shows: what was known of them is used, and asked again',
  )
  expect(await shown('few')).toHaveLength(1)
  const back = log.said('pods of this node are read again')
  await account.allow(documented)
  await back
  expect(pods.namespacesPulling('r.example/team/app:1')).toEqual(['few'])
})

test('a token that counts no more is named once, and the one that takes its place in the file is used', async () => {
  const relay = await relayed()
  const account = await server.account('ended', documented, { url: relay.url })
  await server.namespace('ended')
  await put('ended', 'a', ofConfig('1'))
  const { shown, log } = reading({ kubeconfig: account.kubeconfig })
  expect(await shown('ended')).toHaveLength(1)
  await account.revokeTokens()
  relay.cut()
  relay.mend()
  const refused = 'pull secrets cannot be read from the cluster (HTTP 401)'
  await expect.poll(() => log.sentences.join(), patience).toContain(refused)
  expect(log.sentences.join()).toContain(`renew the credentials of ${account.kubeconfig}`)
  expect(await shown('ended')).toEqual(['u:1 of pull secret ended/a (r.example)'])
  await change('ended', 'a', ofConfig('2'))
  await account.renewToken()
  await expect
    .poll(() => shown('ended'), patience)
    .toEqual(['u:2 of pull secret ended/a (r.example)'])
  expect(log.sentences.filter((sentence) => sentence.includes('HTTP 401'))).toHaveLength(1)
})

test('an API server that is killed and started again takes nothing away, and the watch is taken up', async () => {
  const { kubeconfig } = await server.account('killed', documented)
  await server.namespace('killed')
  await put('killed', 'a', ofConfig('1'))
  await put('killed', 'gone', ofConfig('9'))
  await makePod('killed', 'p', 'r.example/team/app:1', 'killed-node')
  const { shown, pods, log } = reading({ kubeconfig, nodeName: 'killed-node' })
  expect(await shown('killed')).toHaveLength(2)
  const away = log.said('pull secrets cannot be read from the cluster (ECONNREFUSED)')
  await server.kill()
  await away
  expect(await shown('killed')).toHaveLength(2)
  expect(pods.namespacesPulling('r.example/team/app:1')).toEqual(['killed'])
  const back = log.said('pull secrets are read again')
  await server.start()
  await change('killed', 'a', ofConfig('2'))
  await remove('killed', 'gone')
  await back
  await expect
    .poll(() => shown('killed'), patience)
    .toEqual(['u:2 of pull secret killed/a (r.example)'])
  expect(pods.namespacesPulling('r.example/team/app:1')).toEqual(['killed'])
})

test('what the API server has forgotten (410) is found out by a list, deletions and changes of type too', async () => {
  const relay = await relayed()
  const { kubeconfig } = await server.account('forgotten', documented, { url: relay.url })
  await server.namespace('forgotten')
  await put('forgotten', 'changed', ofConfig('1'))
  await put('forgotten', 'deleted', ofConfig('9'))
  await put('forgotten', 'retyped', ofConfig('3'))
  const { shown } = reading({ kubeconfig })
  expect(await shown('forgotten')).toHaveLength(3)
  relay.cut()
  await change('forgotten', 'changed', ofConfig('2'))
  await remove('forgotten', 'deleted')
  await remove('forgotten', 'retyped')
  await put('forgotten', 'retyped', ofDockercfg('4'))
  await server.kill()
  await server.compact()
  await server.start()
  relay.mend()
  await expect
    .poll(
      () => relay.events.some(({ type, object }) => type === 'ERROR' && object.code === 410),
      patience,
    )
    .toBe(true)
  await expect
    .poll(() => shown('forgotten'), patience)
    .toEqual([
      'u:2 of pull secret forgotten/changed (r.example)',
      'u:4 of pull secret forgotten/retyped (r.example)',
    ])
  await put('forgotten', 'new', ofConfig('5'))
  await expect.poll(() => shown('forgotten'), patience).toHaveLength(3)
})

test('a watch that nothing happens in stays open, and bookmarks tell it from where to go on', async () => {
  const relay = await relayed()
  const { kubeconfig } = await server.account('quiet', documented, { url: relay.url })
  await server.namespace('quiet')
  const { shown } = reading({ kubeconfig, nodeName: 'quiet-node' })
  expect(await shown('quiet')).toEqual([])
  const watches = (): string[] => relay.asked.filter((asked) => asked.includes('watch=true'))
  await expect.poll(() => watches().length, patience).toBe(3)
  // What others do moves the cluster's version on, past what the watches have seen.
  await put('quiet', 'opaque', { ...ofConfig('5'), type: 'Opaque' })
  const { metadata } = await core.readNamespacedSecret({ namespace: 'quiet', name: 'opaque' })
  const reached = Number(metadata?.resourceVersion)
  const versionOf = (asked: string): number =>
    Number(new URL(asked, server.url).searchParams.get('resourceVersion'))
  expect(watches().every((asked) => versionOf(asked) < reached)).toBe(true)
  const bookmarked = (): number =>
    new Set(
      relay.events
        .filter(({ asked, type }) => type === 'BOOKMARK' && asked.includes('/secrets'))
        .map(({ asked }) => asked),
    ).size
  // The API server sends one a minute.
  await expect.poll(bookmarked, { timeout: 150_000 }).toBe(2)
  expect(watches()).toHaveLength(3)
  relay.cut()
  relay.mend()
  await expect.poll(() => watches().length, patience).toBe(6)
  const secrets = watches()
    .slice(3)
    .filter((asked) => asked.includes('/secrets'))
  expect(secrets.every((asked) => versionOf(asked) >= reached)).toBe(true)
}, 240_000)
