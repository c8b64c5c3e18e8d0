import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { KubernetesPeers } from '../../../agent/cluster/kubernetes-peers.ts'
import { listeningLog } from '../../support/fuse-mount.ts'
import { KubeApi } from '../../support/kube-api.ts'

const NAMESPACE = 'ipdr-system'
const SERVICE = 'ipdr-agent'

const slice = (name: string, addresses: readonly string[], service = SERVICE) => ({
  metadata: {
    namespace: NAMESPACE,
    name,
    labels: { 'kubernetes.io/service-name': service },
  },
  addressType: 'IPv4',
  ports: [{ name: 'cluster', port: 5082 }],
  endpoints: addresses.map((address) => ({ addresses: [address], nodeName: `node-${address}` })),
})

type Watching = {
  readonly api: KubeApi
  readonly log: ReturnType<typeof listeningLog>
  /** What was told so far, each time all addresses. */
  readonly told: string[][]
}

async function watching(prepare: (api: KubeApi) => void): Promise<Watching> {
  const api = await KubeApi.start()
  onTestFinished(() => api[Symbol.asyncDispose]())
  prepare(api)
  return { api, ...watch(api) }
}

function watch(api: KubeApi, service = SERVICE): Omit<Watching, 'api'> {
  const dir = mkdtempSync(join(tmpdir(), 'kube-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  const kubeconfig = join(dir, 'kubeconfig')
  api.writeKubeconfig(kubeconfig)
  const log = listeningLog()
  const told: string[][] = []
  const peers = new KubernetesPeers(
    { kubeconfig, namespace: NAMESPACE, service },
    { log, onNodes: (nodes) => told.push(nodes.map(({ url }) => new URL(url).hostname)) },
  )
  onTestFinished(() => peers[Symbol.asyncDispose]())
  return { log, told }
}

const patience = { timeout: 20_000 }

test('the nodes of the Service are told all together, and of no other; only its slices are asked for', async () => {
  const { api, told } = await watching((api) => {
    for (let at = 1; at <= 5; at++) api.put('endpointslices', slice(`s${at}`, [`10.0.0.${at}`]))
    api.put('endpointslices', slice('other', ['10.0.0.9'], 'other'))
  })
  await expect.poll(() => told, patience).toHaveLength(1)
  expect(told[0]).toEqual([1, 2, 3, 4, 5].map((at) => `10.0.0.${at}`))
  const label = 'labelSelector=kubernetes.io%2Fservice-name%3Dipdr-agent'
  expect(api.asked.every((asked) => asked.includes(label))).toBe(true)
})

test('changes that come together are told once, and one that changes no node is not', async () => {
  const { api, told } = await watching((api) => api.put('endpointslices', slice('a', ['10.0.0.1'])))
  const other = watch(api, 'other')
  await expect.poll(() => other.told, patience).toEqual([[]])
  api.put('endpointslices', slice('a', ['10.0.0.1']))
  api.put('endpointslices', slice('o', ['10.0.0.9'], 'other'))
  // Both are gathered for as long.
  await expect.poll(() => other.told, patience).toHaveLength(2)
  expect(told).toEqual([['10.0.0.1']])
  for (let at = 2; at <= 9; at++) api.put('endpointslices', slice(`s${at}`, [`10.0.0.${at}`]))
  await expect.poll(() => told, patience).toHaveLength(2)
  expect(told[1]).toHaveLength(9)
})

test('that there is no node is told too, and a Service that is made later is found', async () => {
  const { api, told, log } = await watching(() => {})
  await expect.poll(() => told, patience).toEqual([[]])
  expect(log.sentences).toEqual(['peers of Service ipdr-system/ipdr-agent: 0 nodes are ready of 0'])
  api.put('endpointslices', slice('a', ['10.0.0.1']))
  await expect.poll(() => told, patience).toEqual([[], ['10.0.0.1']])
})

test.each<[string, unknown]>([
  ['nothing', null],
  ['a number', 7],
  ['no metadata', {}],
  ['no name', { metadata: {} }],
  ['a name that is none', { metadata: { name: { toString: 7 } } }],
])(
  'an object that is %s, in a list or an event, is left out, and the watch goes on',
  async (_, object) => {
    const { api, told, log } = await watching((api) => {
      api.strange.push(object)
      api.put('endpointslices', slice('a', ['10.0.0.1']))
    })
    await expect.poll(() => told, patience).toEqual([['10.0.0.1']])
    await expect.poll(() => api.asked.length, patience).toBe(2)
    for (const type of ['ADDED', 'MODIFIED', 'DELETED', 'BOOKMARK', 'OTHER']) api.tell(type, object)
    api.put('endpointslices', slice('b', ['10.0.0.2']))
    await expect.poll(() => told, patience).toEqual([['10.0.0.1'], ['10.0.0.1', '10.0.0.2']])
    expect(api.asked).toHaveLength(2)
    expect(log.sentences.join()).not.toContain('left out')
    expect(log.sentences.join()).not.toContain('cannot be read')
  },
)

test('a slice that is none is told of in one sentence, and takes away nothing', async () => {
  const { api, told, log } = await watching((api) =>
    api.put('endpointslices', slice('a', ['10.0.0.1'])),
  )
  await expect.poll(() => told, patience).toHaveLength(1)
  for (const endpoints of ['all', 7]) {
    api.put('endpointslices', { ...slice('a', []), endpoints })
  }
  api.put('endpointslices', slice('b', ['10.0.0.2']))
  await expect.poll(() => told, patience).toEqual([['10.0.0.1'], ['10.0.0.1', '10.0.0.2']])
  const said = log.sentences.filter((sentence) => sentence.includes('is left out'))
  expect(said).toHaveLength(1)
  expect(said[0]).toContain('EndpointSlice ipdr-system/a')
})

test('an API that refuses is named once, with what to do, and what was found stays', async () => {
  const { api, told, log } = await watching((api) =>
    api.put('endpointslices', slice('a', ['10.0.0.1'])),
  )
  await expect.poll(() => told, patience).toHaveLength(1)
  const refused = log.said(
    'peers of Service ipdr-system/ipdr-agent cannot be read from the cluster (HTTP 403), allow the account of the agent to list and watch them as node-image/kubernetes/README.md shows',
  )
  const back = log.said('peers of Service ipdr-system/ipdr-agent are read again')
  api.failing = 403
  await api.disconnect()
  await refused
  expect(told).toHaveLength(1)
  api.failing = undefined
  await back
  api.put('endpointslices', slice('a', ['10.0.0.2']))
  await expect.poll(() => told, patience).toEqual([['10.0.0.1'], ['10.0.0.2']])
})
