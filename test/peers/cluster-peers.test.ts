import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { DiscoveryV1Api, type V1EndpointSlice, type V1Role } from '@kubernetes/client-node'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { BenchNode } from '../bench/bench-node.ts'
import { goProgram } from '../support/go-programs.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { incompressible } from '../support/incompressible.ts'
import { etcdCommand, KubeApiServer } from '../support/kube-apiserver.ts'
import { KUBERNETES, objectsIn } from '../support/kubernetes-manifests.ts'
import { Publisher } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { enterOwnNetwork } from '../support/own-network.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'

// Goal: agents find each other through a cluster, whatever becomes of them and of it. Method: three agents, each at an address of its own
// in a network of their own, a real kube-apiserver, the rights of our manifest and no more, the certificates that the README makes.
// EndpointSlices are written as the controller of Kubernetes does (test/kubernetes has that one). The tests follow each other.

const NAMESPACE = 'ipdr-system'
const PORT = 5082
const ADDRESSES = { one: '10.77.0.1', two: '10.77.0.2', three: '10.77.0.3' } as const
type Name = keyof typeof ADDRESSES

const FILES = 12
const FILE_BYTES = 300_000

const opened = new AsyncDisposableStack()
let scratch: Scratch
let server: KubeApiServer
let discovery: DiscoveryV1Api
let publisher: Publisher
let kubeconfig: string
let tls: object
let one: BenchNode
let two: BenchNode
let three: BenchNode

beforeAll(async () => {
  // What has to be downloaded, before there is no network.
  etcdCommand()
  await goProgram('kube-apiserver')
  await enterOwnNetwork(Object.values(ADDRESSES))
  scratch = opened.use(Scratch.open('cluster-peers'))
  tls = await certificates()
  server = opened.use(await KubeApiServer.start(scratch))
  discovery = server.admin.makeApiClient(DiscoveryV1Api)
  const roles = objectsIn('components/cluster-peers/access.yaml').filter(
    (object): object is V1Role => object.kind === 'Role',
  )
  const rules = roles.flatMap(({ rules }) => rules ?? [])
  const account = await server.account('agent', rules, { namespaces: [NAMESPACE] })
  kubeconfig = account.kubeconfig
  publisher = opened.use(await Publisher.start(scratch))
}, 900_000)
afterAll(async () => await opened.disposeAsync(), 60_000)

const patience = { timeout: 60_000 }

/** As node-image/kubernetes/README.md makes them, for all agents. */
async function certificates(): Promise<object> {
  const dir = join(scratch.dir, 'certificates')
  mkdirSync(dir)
  const readme = readFileSync(join(KUBERNETES, 'README.md'), 'utf8')
  const script = [...readme.matchAll(/^ {4}(openssl (?:.*\\\n)*.*)$/gm)].map(([, line]) => line)
  await runCommand('sh', ['-euc', script.join('\n')], { cwd: dir })
  const [certFile, keyFile, caFile] = ['tls.crt', 'tls.key', 'ca.crt'].map((name) =>
    join(dir, name),
  )
  return { certFile, keyFile, caFile }
}

async function start(name: Name): Promise<BenchNode> {
  const address = `${ADDRESSES[name]}:${PORT}`
  const cluster = {
    listen: address,
    // Of this one machine all addresses are its own.
    address: `https://${address}`,
    kubernetes: { kubeconfig },
    tls,
  }
  return opened.use(await BenchNode.start({ gatewayUrl: publisher.gatewayUrl }, { cluster }))
}

type Pod = { readonly node: string; readonly at: Name; readonly isReady?: boolean }

/** What the controller makes of such pods. */
function sliceOf(name: string, pods: readonly Pod[]): V1EndpointSlice {
  return {
    metadata: {
      name,
      namespace: NAMESPACE,
      labels: {
        'kubernetes.io/service-name': 'ipdr-agent',
        'endpointslice.kubernetes.io/managed-by': 'endpointslice-controller.k8s.io',
        'service.kubernetes.io/headless': '',
      },
    },
    addressType: 'IPv4',
    ports: [{ name: 'cluster', port: PORT, protocol: 'TCP' }],
    endpoints: pods.map(({ node, at, isReady = true }) => ({
      addresses: [ADDRESSES[at]],
      nodeName: node,
      conditions: { ready: isReady, serving: isReady, terminating: false },
      targetRef: { kind: 'Pod', name: `ipdr-agent-${node}`, namespace: NAMESPACE },
    })),
  }
}

async function write(name: string, pods: readonly Pod[]): Promise<void> {
  const [namespace, body] = [NAMESPACE, sliceOf(name, pods)]
  const { items } = await discovery.listNamespacedEndpointSlice({ namespace })
  if (items.some(({ metadata }) => metadata?.name === name)) {
    await discovery.replaceNamespacedEndpointSlice({ namespace, name, body })
  } else await discovery.createNamespacedEndpointSlice({ namespace, body })
}

async function metric(node: BenchNode, name: string): Promise<number> {
  return (await node.agent.metrics()).get(name) ?? 0
}

const peersOf = (node: BenchNode): Promise<number> => metric(node, 'ipdr_cluster_peers')
const served = (node: BenchNode): Promise<number> => metric(node, 'ipdr_cluster_served_bytes_total')
const fromCluster = (node: BenchNode): Promise<number> =>
  metric(node, 'ipdr_fetched_bytes_total{source="cluster"}')

let images = 0

/** A new image, pulled whole by these nodes, one after the other. */
async function pull(...nodes: readonly BenchNode[]): Promise<void> {
  const [seed, dir] = [images * FILES, join(scratch.dir, `image-${images++}`)]
  const entries = Array.from({ length: FILES }, (_, file) => ({
    name: `file-${file}`,
    content: incompressible(seed + file, FILE_BYTES),
  }))
  const tar = makeTar(...entries)
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(dir, 'layers'))
  const layout = writeOciLayout(join(dir, 'layout'), { layers: [layer] })
  const reference = `ipdr.internal/${await publisher.push(layout)}`
  for (const node of nodes) await node.pull(reference, { all: true })
}

test('agents are no peers before they are ready, and peers as soon as they are', async () => {
  await write('a', [
    { node: 'one', at: 'one' },
    { node: 'two', at: 'two', isReady: false },
  ])
  one = await start('one')
  two = await start('two')
  await expect.poll(() => peersOf(two), patience).toBe(1)
  expect(await peersOf(one)).toBe(0)
  await write('a', [
    { node: 'one', at: 'one' },
    { node: 'two', at: 'two' },
  ])
  await expect.poll(() => peersOf(one), patience).toBe(1)
  await pull(one, two)
  expect(await served(one)).toBeGreaterThan(0)
  expect(await served(two)).toBeGreaterThan(0)
  expect(await fromCluster(two)).toBe(await served(one))
}, 240_000)

test('where another agent has moved to it is asked, and where it was no more', async () => {
  three = await start('three')
  await write('a', [
    { node: 'one', at: 'one' },
    { node: 'two', at: 'three' },
  ])
  await expect.poll(() => peersOf(three), patience).toBe(1)
  // The others hear of it at the same time, and a moment may lie between.
  const askedBefore = await served(two)
  await expect
    .poll(async () => {
      await pull(one)
      return served(three)
    }, patience)
    .toBeGreaterThan(0)
  expect(await served(two)).toBe(askedBefore)
}, 240_000)

test('while the API server is away nothing changes, images are pulled, and what has changed meanwhile is seen when it is back', async () => {
  const away = one.agent.logged('peers of Service ipdr-system/ipdr-agent cannot be read')
  const back = one.agent.logged('peers of Service ipdr-system/ipdr-agent are read again')
  await server.kill()
  await away
  const before = await served(three)
  await pull(one)
  expect(await served(three)).toBeGreaterThan(before)
  expect(await peersOf(one)).toBe(1)
  await server.start()
  await write('b', [{ node: 'three', at: 'two' }])
  await back
  await expect.poll(() => peersOf(one), patience).toBe(2)
}, 240_000)

test('agents that vanish are asked no more, and images come from where they are published', async () => {
  await discovery.deleteNamespacedEndpointSlice({ namespace: NAMESPACE, name: 'b' })
  await write('a', [{ node: 'one', at: 'one' }])
  await expect.poll(() => peersOf(one), patience).toBe(0)
  const before = [await served(two), await served(three), await fromCluster(one)]
  await pull(one)
  expect([await served(two), await served(three), await fromCluster(one)]).toEqual(before)
}, 240_000)

test('nobody has said anything that an operator would have to look at', () => {
  const words = [one, two, three].flatMap(({ agent }) => agent.lines)
  const warned = words.filter(({ level }) => Number(level) >= 40).map(({ msg = '' }) => msg)
  for (const sentence of warned)
    expect(sentence).toMatch(/^peers of Service .* cannot be read|none\.sock|containerd/)
})
