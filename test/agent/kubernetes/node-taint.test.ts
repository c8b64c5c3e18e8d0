import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { text } from 'node:stream/consumers'
import { CoreV1Api, KubeConfig, type V1Taint } from '@kubernetes/client-node'
import { expect, onTestFinished, test } from 'vitest'
import { NodeTaint } from '../../../agent/kubernetes/node-taint.ts'

const OURS: V1Taint = { key: 'ipdr.dev/not-ready', effect: 'NoSchedule' }
const THEIRS: V1Taint = { key: 'gpu', value: 'yes', effect: 'NoSchedule' }
const MINUTE = 60_000

type Operation = { readonly op: string; readonly path: string; readonly value: unknown }

/** A server with one node, which takes JSON patches of its taints as kube-apiserver does, and the client of it. */
async function setUp(taints: V1Taint[]): Promise<{
  node: {
    taints: V1Taint[]
    version: number
    asked: string[]
    onRead?: () => void
    failing?: boolean
  }
  taint: NodeTaint
}> {
  const node: Awaited<ReturnType<typeof setUp>>['node'] = { taints, version: 7, asked: [] }
  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const send = (code: number, body: object): void => {
      response.writeHead(code, { 'content-type': 'application/json' }).end(JSON.stringify(body))
    }
    node.asked.push(`${request.method} ${request.url}`)
    if (node.failing === true) return send(503, { kind: 'Status', code: 503 })
    const metadata = { name: 'node-1', resourceVersion: String(node.version) }
    const object = { kind: 'Node', metadata, spec: { taints: node.taints } }
    if (request.method === 'GET') {
      send(200, object)
      node.onRead?.()
      return
    }
    expect(request.headers['content-type']).toBe('application/json-patch+json')
    const [precondition, change] = JSON.parse(await text(request)) as [Operation, Operation]
    expect(precondition).toMatchObject({ op: 'test', path: '/metadata/resourceVersion' })
    if (precondition.value !== String(node.version)) return send(422, { kind: 'Status', code: 422 })
    expect(change).toMatchObject({ op: 'add', path: '/spec/taints' })
    node.taints = change.value as V1Taint[]
    node.version += 1
    send(200, object)
  }
  const server = createServer((request, response) => void answer(request, response))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  const kube = new KubeConfig()
  kube.loadFromClusterAndUser(
    { name: 'c', server: `http://127.0.0.1:${address.port}`, skipTLSVerify: true },
    { name: 'u' },
  )
  return { node, taint: new NodeTaint('node-1', kube.makeApiClient(CoreV1Api)) }
}

test('the taint goes when the agent is ready, and others stay', async () => {
  const { node, taint } = await setUp([THEIRS, OURS])
  expect(await taint.follow(false, 0)).toBeUndefined()
  expect(node.asked).toEqual([])
  expect(await taint.follow(true, 1_000)).toBe('removed')
  expect(node.taints).toEqual([THEIRS])
})

test('a node that has no taint is left alone, and looked at once a minute', async () => {
  const { node, taint } = await setUp([])
  for (let second = 0; second < 59; second++) await taint.follow(true, second * 1_000)
  expect(node.asked).toEqual(['GET /api/v1/nodes/node-1'])
  node.taints = [OURS] // As a kubelet that registers the node anew.
  expect(await taint.follow(true, MINUTE)).toBe('removed')
  expect(node.taints).toEqual([])
})

test('an agent that is away for a rollout keeps its node, one that is for two minutes does not', async () => {
  const { node, taint } = await setUp([THEIRS])
  await taint.follow(true, 0)
  expect(await taint.follow(false, 1_000)).toBeUndefined()
  expect(await taint.follow(false, 2 * MINUTE)).toBeUndefined()
  expect(await taint.follow(true, 2 * MINUTE + 500)).toBeUndefined()
  expect(await taint.follow(false, 3 * MINUTE)).toBeUndefined()
  expect(await taint.follow(false, 5 * MINUTE)).toBe('put back')
  expect(node.taints).toEqual([THEIRS, OURS])
  expect(await taint.follow(true, 6 * MINUTE)).toBe('removed')
  expect(node.taints).toEqual([THEIRS])
})

test('a taint that somebody adds at the same moment is not lost', async () => {
  const { node, taint } = await setUp([OURS])
  node.onRead = () => {
    node.taints = [OURS, THEIRS]
    node.version += 1
    node.onRead = () => {}
  }
  await expect(taint.follow(true, 0)).rejects.toMatchObject({ code: 422 })
  expect(await taint.follow(true, 1_000)).toBe('removed')
  expect(node.taints).toEqual([THEIRS])
})

test('an API that is away is asked again', async () => {
  const { node, taint } = await setUp([OURS])
  node.failing = true
  await expect(taint.follow(true, 0)).rejects.toMatchObject({ code: 503 })
  node.failing = false
  expect(await taint.follow(true, 1_000)).toBe('removed')
})
