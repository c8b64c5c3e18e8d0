import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import { createInterface } from 'node:readline'
import { create, fromBinary, toBinary } from '@bufbuild/protobuf'
import type { Libp2p } from '@libp2p/interface'
import { type Hex, hexToBytes, keccak256 } from 'viem'
import { privateKeyToAccount, sign } from 'viem/accounts'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { startClientHost } from '../../agent/client/client-host.ts'
import { namespaceOf } from '../../agent/deploy/pod-namespace.ts'
import {
  DeletePodResponseSchema,
  PodLogRequestSchema,
  PodLogResponseSchema,
  ProvisionPodRequestSchema,
  ProvisionPodResponseSchema,
} from '../../proto/messages/apocryph/provision-pod_pb.js'
import { DeployAgent } from '../support/deploy-agent.ts'
import { goProgram } from '../support/go-programs.ts'

// Goal: Trusted Pods' own client deploys as it does today. Method: what that client is made of, connect-go 1.12 on Go's HTTP client, unchanged; and in
// Kubo's place a bridge that does what `ipfs p2p forward` does: each TCP connection is a libp2p stream of its bytes, and the end of either is
// the end of both.

const SERVICE = '/apocryph.proto.v0.provisionPod.ProvisionPodService'

let agent: DeployAgent
let host: Libp2p

beforeAll(async () => {
  await goProgram('connect-go')
  agent = await DeployAgent.start('connect-go')
  agent.becomesReady()
  host = await startClientHost()
}, 600_000)
afterAll(async () => {
  await host.stop()
  await agent[Symbol.asyncDispose]()
})

type Answer = {
  readonly code?: string
  readonly message?: string
  readonly messages: readonly string[]
}
type Call = {
  readonly rpc: string
  readonly podId: Hex
  readonly request?: Uint8Array
  readonly messages?: number
}

/** As `ipfs p2p forward`, for one protocol. */
async function forward(protocol: string): Promise<{ url: string; readonly streams: () => number }> {
  let streams = 0
  const server = createServer((socket) => {
    streams++
    void (async () => {
      const stream = await host.dialProtocol(agent.endpoint.libp2p.getMultiaddrs(), protocol)
      stream.addEventListener('message', ({ data }) => void socket.write(data.subarray()))
      stream.addEventListener('end', () => socket.destroy())
      stream.addEventListener('close', () => socket.destroy())
      socket.on('data', (bytes) => void stream.send(bytes))
      socket.on('error', () => undefined)
      socket.on('close', () => void stream.close().catch(() => undefined))
    })()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  return { url: `http://127.0.0.1:${address.port}`, streams: () => streams }
}

/** Makes calls one after the other, by one process. */
async function call(url: string, calls: readonly Call[]): Promise<Answer[]> {
  const child = spawn(await goProgram('connect-go'), [url], { stdio: ['pipe', 'pipe', 'inherit'] })
  onTestFinished(() => void child.kill('SIGKILL'))
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const answers: Answer[] = []
  for (const { rpc, podId, request = new Uint8Array(), messages = 0 } of calls) {
    const token = await tokenOf(rpc, podId)
    const line = {
      procedure: `${SERVICE}/${rpc}`,
      token,
      request: Buffer.from(request).toString('base64'),
      messages,
    }
    child.stdin.write(`${JSON.stringify(line)}\n`)
    const { value } = await lines.next()
    answers.push(JSON.parse(String(value)) as Answer)
  }
  child.stdin.end()
  return answers
}

/** As Go's encoding/json writes it. */
async function tokenOf(rpc: string, podId: Hex): Promise<string> {
  const json = JSON.stringify({
    PodId: podId,
    Operation: `${SERVICE}/${rpc}`,
    ExpirationTime: new Date(Date.now() + 10_000).toISOString().replace('Z', '123456Z'),
    Publisher: privateKeyToAccount(agent.chain.publisherKey).address.toLowerCase(),
  })
  const { r, s, yParity } = await sign({
    hash: keccak256(Buffer.from(json)),
    privateKey: agent.chain.publisherKey,
  })
  const signature = Buffer.concat([hexToBytes(r), hexToBytes(s), Buffer.of(yParity ?? 0)])
  return `Bearer ${Buffer.from(json).toString('base64')}.${signature.toString('base64')}`
}

function provision(podId: Hex): Uint8Array {
  const { chain } = agent
  return toBinary(
    ProvisionPodRequestSchema,
    create(ProvisionPodRequestSchema, {
      pod: {
        containers: [
          {
            name: 'web',
            image: { url: 'docker.io/nginxdemos/nginx-hello:latest' },
            ports: [
              {
                name: 'http',
                containerPort: 8080n,
                servicePort: 80n,
                exposedPort: { case: 'hostHttpHost', value: `${podId.slice(-4)}.localhost` },
              },
            ],
          },
        ],
      },
      payment: {
        chainID: Uint8Array.of(0x7a, 0x69),
        contractAddress: hexToBytes(chain.contract),
        publisherAddress: hexToBytes(chain.publisher),
        providerAddress: hexToBytes(chain.operator),
        podID: hexToBytes(podId),
      },
    }),
  )
}

const bytesOf = ({ messages }: Answer, index = 0): Uint8Array =>
  Buffer.from(messages[index] ?? '', 'base64')

test.each(['/x/trusted-pods/provision-pod/0.0.1', '/x/apocryph/provision-pod/0.0.1'])(
  'a pod is provisioned and deleted by %s, on one stream',
  async (protocol) => {
    const podId = await agent.fund()
    const { url, streams } = await forward(protocol)
    const [provisioned, deleted] = await call(url, [
      { rpc: 'ProvisionPod', podId, request: provision(podId) },
      { rpc: 'DeletePod', podId },
    ])
    const { namespace, addresses, error } = fromBinary(
      ProvisionPodResponseSchema,
      bytesOf(provisioned as Answer),
    )
    expect({ namespace, error }).toEqual({
      namespace: namespaceOf(agent.chain.publisher, podId),
      error: '',
    })
    expect(addresses).toMatchObject([
      { multiaddr: `http/${podId.slice(-4)}.localhost`, containerName: 'web' },
    ])
    expect(fromBinary(DeletePodResponseSchema, bytesOf(deleted as Answer)).success).toBe(true)
    expect(streams()).toBe(1)
  },
)

test('a log is followed for as long as the client reads', async () => {
  const podId = await agent.fund()
  const { url } = await forward('/x/trusted-pods/provision-pod/0.0.1')
  await call(url, [{ rpc: 'ProvisionPod', podId, request: provision(podId) }])
  const namespace = namespaceOf(agent.chain.publisher, podId)
  await agent.cluster.apply({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { namespace, name: 'replica' },
    spec: { containers: [{ name: 'web' }] },
    status: { containerStatuses: [{ name: 'web', state: { running: {} } }] },
  } as never)
  agent.cluster.lines = Array.from({ length: 1_000 }, (_, n) => `2026-11-27T12:00:00.5Z line ${n}`)
  const request = toBinary(
    PodLogRequestSchema,
    create(PodLogRequestSchema, { containerName: 'web' }),
  )
  const [logged] = await call(url, [{ rpc: 'GetPodLogs', podId, request, messages: 1_000 }])
  expect(logged?.code).toBeUndefined()
  const lines = logged?.messages.map(
    (_, index) => fromBinary(PodLogResponseSchema, bytesOf(logged, index)).logEntry,
  )
  expect(lines).toHaveLength(1_000)
  expect(lines?.at(-1)).toMatchObject({
    line: 'line 999',
    NanosecondsUnixEpoch: 1_795_780_800_500_000_000n,
  })
})

test('a hundred calls are made on one stream, and refusals come by the codes that the client knows', async () => {
  const { url, streams } = await forward('/x/trusted-pods/provision-pod/0.0.1')
  const podId: Hex = `0x${'99'.repeat(32)}`
  const answers = await call(
    url,
    Array.from({ length: 100 }, () => ({ rpc: 'DeletePod', podId })),
  )
  expect(new Set(answers.map(({ code }) => code))).toEqual(new Set(['failed_precondition']))
  expect(answers[0]?.message).toContain('provision it first')
  expect(streams()).toBe(1)
})

test('the ping of the client, a connection that is closed at once, leaves nothing behind', async () => {
  const { url, streams } = await forward('/x/trusted-pods/provision-pod/0.0.1')
  for (let ping = 0; ping < 20; ping++) {
    const socket = connect(Number(new URL(url).port), '127.0.0.1')
    await once(socket, 'connect')
    socket.end()
    await once(socket, 'close')
  }
  await expect.poll(() => agent.endpoint.load.streams, { timeout: 20_000 }).toBe(0)
  expect(streams()).toBe(20)
})
