import { join } from 'node:path'
import { create, toBinary } from '@bufbuild/protobuf'
import { Code, createClient, encodeBinaryHeader } from '@connectrpc/connect'
import { createConnectTransport } from '@connectrpc/connect-web'
import type { Libp2p } from '@libp2p/interface'
import { type Hex, hexToBytes, keccak256 } from 'viem'
import { privateKeyToAccount, sign } from 'viem/accounts'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startClientHost } from '../../../agent/client/client-host.ts'
import { DEPLOY_PROTOCOL, DeployClient } from '../../../agent/client/deploy-client.ts'
import { SIGNED_CALL_HEADER, signCall } from '../../../agent/client/signed-call.ts'
import { streamFetch } from '../../../agent/client/stream-fetch.ts'
import type { DeployEndpoint } from '../../../agent/deploy/deploy-endpoint.ts'
import { namespaceOf } from '../../../agent/deploy/pod-namespace.ts'
import {
  DeletePodRequestSchema,
  ProvisionPodRequestSchema,
  UpdatePodRequestSchema,
} from '../../../proto/messages/apocryph/provision-pod_pb.js'
import {
  type DeployProgress,
  DeployService,
  PodSchema,
  SignedCallSchema,
} from '../../../proto/messages/ipdr/deploy_pb.js'
import { TestChain } from '../../support/chain/test-chain.ts'
import { listenForDeploys } from '../../support/listen-for-deploys.ts'
import { MemoryCluster } from '../../support/memory-cluster.ts'
import { Scratch } from '../../support/scratch.ts'

const SERVICE = '/apocryph.proto.v0.provisionPod.ProvisionPodService'

let chain: TestChain
let scratch: Scratch
let endpoint: DeployEndpoint
let client: Libp2p
let cluster: MemoryCluster
let nextPod = 0
/** What the node has of images. */
const arrivals = new Map<string, { hereBytes: number; allBytes: number }>()

beforeAll(async () => {
  scratch = Scratch.open('deploy-endpoint')
  chain = await TestChain.start(scratch)
  client = await startClientHost()
  cluster = new MemoryCluster()
  endpoint = await listen()
})

afterAll(async () => {
  await endpoint[Symbol.asyncDispose]()
  await client.stop()
  await chain[Symbol.asyncDispose]()
  await scratch[Symbol.asyncDispose]()
})

async function listen(changes: object = {}): Promise<DeployEndpoint> {
  const dir = join(scratch.dir, `agent-${nextPod++}`)
  const images = { arrivalOf: async (image: string) => arrivals.get(image) }
  return await listenForDeploys({ chain, cluster, dir, images }, changes)
}

/** A pod ID of its own, whose channel holds an hour of a core. */
async function fundedPod(amount = 3_600_000n): Promise<Hex> {
  const podId: Hex = `0x${(++nextPod).toString(16).padStart(64, '0')}`
  await chain.createChannel(podId, { unlockSeconds: 300n, amount })
  return podId
}

function publisher(key: Hex = chain.publisherKey, of = endpoint): DeployClient {
  return new DeployClient(client, of.multiaddrs, { signer: privateKeyToAccount(key) })
}

function pod(
  changes: Parameters<typeof create<typeof PodSchema>>[1] = {},
): ReturnType<typeof create<typeof PodSchema>> {
  return create(PodSchema, {
    name: 'shop',
    containers: [
      {
        name: 'web',
        image: 'ghcr.io/some/image:1',
        cpuMillis: 500,
        memoryBytes: 2n ** 26n,
        ports: [{ name: 'http', containerPort: 8080 }],
      },
    ],
    ...changes,
  })
}

/** Has the workload of a namespace be as its controller would once all replicas run. */
function makeReady(namespace: string): void {
  cluster.set('Deployment', namespace.replace('tpod-', 'tpod-dep-'), (object) => {
    const { replicas } = object['spec'] as { replicas: number }
    object['status'] = { replicas, readyReplicas: replicas, updatedReplicas: replicas }
  })
}

/** Deploys, and has the pod become ready as soon as it is there. */
async function deployed(podId: Hex, of = publisher()): Promise<DeployProgress[]> {
  const steps: DeployProgress[] = []
  for await (const progress of of.deploy(podId, { pod: pod() })) {
    steps.push(progress)
    if (progress.step.case === 'applied') makeReady(namespaceOf(chain.publisher, podId))
  }
  return steps
}

const sameAs = (text: string): object =>
  expect.objectContaining({ rawMessage: expect.stringContaining(text) })

describe('a publisher', () => {
  test('asks what it costs, without a signature', async () => {
    const { agent, evmChainId, offers } = await publisher().capacity()
    expect(agent).toBe(endpoint.libp2p.peerId.toString())
    expect(evmChainId).toBe(chain.evmChainId)
    expect(offers[0]?.prices).toMatchObject([
      { resource: 'cpu', perUnitGigasecond: '1000000000000' },
    ])
  })

  test('deploys a pod that is paid for, and hears how it goes until it is ready', async () => {
    const podId = await fundedPod()
    const steps = await deployed(podId)
    expect(steps.map(({ step }) => step.case)).toEqual(['accepted', 'applied', 'ready'])
    expect(steps[0]?.step.value).toMatchObject({
      namespace: namespaceOf(chain.publisher, podId),
      // Half a core at 1,000 a second.
      fundedSeconds: 7_200n,
    })
    expect(steps[2]?.step.value).toMatchObject({
      replicas: 1,
      addresses: [{ where: { case: 'service', value: 'tpod-svc-http:8080' } }],
    })
  })

  test('hears how much of an image has arrived, whenever that changes', async () => {
    const podId = await fundedPod()
    const image = 'ipdr.internal/bafybeifsgierqdgmnlaawzggr4glgew5wnyzxwx3sqbx2bexjizsgp4aay:latest'
    const container = { name: 'web', image, cpuMillis: 100, memoryBytes: 2n ** 26n }
    const seen: bigint[] = []
    arrivals.set(image, { hereBytes: 1_000, allBytes: 3_000 })
    for await (const { step } of publisher().deploy(podId, {
      pod: pod({ containers: [container] }),
    })) {
      if (step.case !== 'image') continue
      seen.push(step.value.bytesHere)
      if (step.value.bytesHere < 3_000n) {
        arrivals.set(image, { hereBytes: Number(step.value.bytesHere) + 1_000, allBytes: 3_000 })
      } else makeReady(namespaceOf(chain.publisher, podId))
    }
    expect(seen).toEqual([1_000n, 2_000n, 3_000n])
  })

  test('sees his pods, and one of them', async () => {
    const podId = await fundedPod()
    await deployed(podId)
    const listed = await publisher().list()
    expect(listed.map((one) => one.namespace)).toContain(namespaceOf(chain.publisher, podId))
    const { summary, addresses } = await publisher().status(podId)
    expect(summary).toMatchObject({ name: 'shop', state: 3, replicasReady: 1 })
    expect(addresses).toHaveLength(1)
  })

  test('does not see those of others', async () => {
    const podId = await fundedPod()
    await deployed(podId)
    const other = publisher(`0x${'77'.repeat(32)}`)
    expect(await other.list()).toEqual([])
    await expect(other.status(podId)).rejects.toEqual(sameAs('there is no pod'))
    await expect(other.delete(podId).next()).rejects.toEqual(sameAs('there is no pod'))
    await expect(other.logs(podId).next()).rejects.toEqual(sameAs('there is no pod'))
    expect(cluster.names('Namespace')).toContain(
      `Namespace /${namespaceOf(chain.publisher, podId)}`,
    )
  })

  test('deletes it', async () => {
    const podId = await fundedPod()
    await deployed(podId)
    const steps = []
    for await (const step of publisher().delete(podId)) steps.push(step)
    expect(steps.at(-1)).toMatchObject({ done: true })
    await expect(publisher().status(podId)).rejects.toMatchObject({ code: 5 })
  })

  test('who goes away has not stopped his deployment', async () => {
    const podId = await fundedPod()
    const stop = new AbortController()
    await expect(
      (async () => {
        // At the first word, before anything is in the cluster.
        for await (const { step } of publisher().deploy(podId, { pod: pod() }, stop.signal)) {
          if (step.case === 'accepted') stop.abort()
        }
      })(),
    ).rejects.toThrow('abort')
    const namespace = namespaceOf(chain.publisher, podId)
    await expect
      .poll(() => cluster.object('Namespace', namespace)?.metadata?.labels?.['ipdr.dev/state'])
      .toBe('applied')
  })

  test('who may not be here is told so', async () => {
    await using closed = await listen({ publishers: [chain.deployer] })
    await expect(publisher(chain.publisherKey, closed).list()).rejects.toEqual(
      sameAs('not among the publishers of this cluster'),
    )
  })

  test('cannot run a command in a pod, and is told why', async () => {
    const podId = await fundedPod()
    await deployed(podId)
    const addresses = endpoint.libp2p.getMultiaddrs()
    const fetch = streamFetch(() => client.dialProtocol(addresses, DEPLOY_PROTOCOL))
    const transport = createConnectTransport({ baseUrl: 'http://a', fetch, useBinaryFormat: true })
    const call = await signCall(
      {
        operation: 'Exec',
        operator: chain.operator.toLowerCase() as Hex,
        agent: endpoint.libp2p.peerId.toString(),
        podId,
        payload: new Uint8Array(),
        expiresAt: BigInt(Math.floor(Date.now() / 1_000) + 60),
        nonce: `0x${'12'.repeat(32)}`,
        evmChainId: chain.evmChainId,
        contract: chain.contract,
      },
      privateKeyToAccount(chain.publisherKey),
    )
    const headers = { [SIGNED_CALL_HEADER]: encodeBinaryHeader(call, SignedCallSchema) }
    const asked = createClient(DeployService, transport).exec({ command: ['sh'] }, { headers })
    await expect(asked).rejects.toMatchObject({
      code: Code.PermissionDenied,
      rawMessage: expect.stringContaining('read its secrets'),
    })
  })
})

describe('a pod is not deployed', () => {
  const refused = async (podId: Hex): Promise<unknown> => {
    const before = cluster.calls.length
    const failure = await publisher()
      .deploy(podId, { pod: pod() })
      .next()
      .then(
        () => 'nothing',
        (error: unknown) => error,
      )
    expect(cluster.calls).toHaveLength(before)
    return failure
  }

  test('without a channel', async () => {
    expect(await refused(`0x${'ef'.repeat(32)}`)).toEqual(sameAs('there is no payment channel'))
  })

  test('by a channel that lasts for less than ten minutes', async () => {
    expect(await refused(await fundedPod(299_999n))).toEqual(sameAs('deposit at least 1 more'))
  })

  test('by a channel that is being emptied', async () => {
    const podId = await fundedPod()
    await chain.unlock(podId)
    expect(await refused(podId)).toEqual(sameAs('is unlocking'))
  })

  test('while the chain cannot be asked, and what is there stays', async () => {
    const podId = await fundedPod()
    await deployed(podId)
    const before = cluster.names()
    chain.pause()
    try {
      const failure = publisher()
        .deploy(podId, { pod: pod({ name: 'changed' }) })
        .next()
      await expect(failure).rejects.toMatchObject({ code: 14 })
      await expect(failure).rejects.not.toEqual(sameAs('127.0.0.1'))
    } finally {
      chain.resume()
    }
    expect(cluster.names()).toEqual(before)
  })

  test('of which a field is wrong, which is named', async () => {
    const podId = await fundedPod()
    const wrong = pod({ scaling: { min: 1, max: 1_000_000_000 } })
    await expect(publisher().deploy(podId, { pod: wrong }).next()).rejects.toEqual(
      sameAs('scaling.max: is 1000000000, it may be 100'),
    )
  })

  test('that is larger than 400 KiB', async () => {
    const podId = await fundedPod()
    const contents = new Uint8Array(410 * 1024)
    const large = pod({ volumes: [{ name: 'a', source: { case: 'secret', value: { contents } } }] })
    await expect(publisher().deploy(podId, { pod: large }).next()).rejects.toEqual(
      sameAs('payload: has'),
    )
  })
})

/** What a Go client sends, byte for byte but for its own headers, and what it gets. */
async function old(
  rpc: string,
  message: Uint8Array,
  {
    podId,
    key = chain.publisherKey,
    operation = rpc,
    expires = 60,
  }: { podId: Hex; key?: Hex; operation?: string; expires?: number },
): Promise<{ status: number; text: string }> {
  const json = JSON.stringify({
    PodId: podId,
    Operation: `${SERVICE}/${operation}`,
    ExpirationTime: new Date(Date.now() + expires * 1_000).toISOString(),
    Publisher: privateKeyToAccount(key).address.toLowerCase(),
  })
  return await oldCall(rpc, message, await tokenOf(json, key))
}

async function tokenOf(json: string, key: Hex): Promise<string> {
  const { r, s, yParity } = await sign({ hash: keccak256(Buffer.from(json)), privateKey: key })
  const signature = Buffer.concat([hexToBytes(r), hexToBytes(s), Buffer.of(yParity ?? 0)])
  return `Bearer ${Buffer.from(json).toString('base64')}.${signature.toString('base64')}`
}

async function oldCall(
  rpc: string,
  message: Uint8Array,
  token: string,
): Promise<{ status: number; text: string }> {
  const stream = await client.dialProtocol(
    endpoint.libp2p.getMultiaddrs(),
    '/x/trusted-pods/provision-pod/0.0.1',
  )
  const head = `POST ${SERVICE}/${rpc} HTTP/1.1\r\nHost: 127.0.0.1:40123\r\nUser-Agent: connect-go/1.12.0 (go1.21.3)\r\nContent-Length: ${message.length}\r\nAccept-Encoding: gzip\r\nAuthorization: ${token}\r\nConnect-Protocol-Version: 1\r\nContent-Type: application/proto\r\n\r\n`
  const { promise, resolve } = Promise.withResolvers<string>()
  let text = ''
  stream.addEventListener('message', ({ data }) => {
    text += Buffer.from(data.subarray()).toString('latin1')
    const length = /\r\ncontent-length: (\d+)\r\n/i.exec(text)
    const body = text.indexOf('\r\n\r\n') + 4
    if (length !== null && body > 3 && text.length - body >= Number(length[1])) resolve(text)
  })
  stream.addEventListener('close', () => resolve(text))
  stream.send(Buffer.concat([Buffer.from(head), message]))
  const answer = await promise
  stream.abort(new Error('done'))
  return { status: Number(/^HTTP\/1\.1 (\d+)/.exec(answer)?.[1]), text: answer }
}

function payment(podId: Hex, changes: object = {}): object {
  return {
    chainID: Uint8Array.of(0x7a, 0x69),
    contractAddress: hexToBytes(chain.contract),
    publisherAddress: hexToBytes(chain.publisher),
    providerAddress: hexToBytes(chain.operator),
    podID: hexToBytes(podId),
    ...changes,
  }
}

const OLD_POD = {
  containers: [
    {
      name: 'web',
      image: { url: 'docker.io/nginxdemos/nginx-hello:latest' },
      ports: [
        {
          name: 'http',
          containerPort: 8080n,
          exposedPort: { case: 'hostHttpHost', value: 'guestbook.localhost' } as const,
        },
      ],
      resourceRequests: [
        { resource: 'cpu', quantity: { case: 'amountMillis', value: 100n } as const },
      ],
    },
  ],
  replicas: { min: 0, max: 1 },
}

function provision(podId: Hex, changes: object = {}): Uint8Array {
  return toBinary(
    ProvisionPodRequestSchema,
    create(ProvisionPodRequestSchema, { pod: { ...OLD_POD }, payment: payment(podId), ...changes }),
  )
}

describe('a client of Trusted Pods', () => {
  test('provisions, updates and deletes a pod', async () => {
    const podId = await fundedPod()
    const namespace = namespaceOf(chain.publisher, podId)
    const provisioned = await old('ProvisionPod', provision(podId), { podId })
    expect(provisioned.status).toBe(200)
    expect(provisioned.text).toContain(namespace)
    expect(provisioned.text).toContain('http/guestbook.localhost')
    const update = toBinary(
      UpdatePodRequestSchema,
      create(UpdatePodRequestSchema, { pod: OLD_POD }),
    )
    expect(await old('UpdatePod', update, { podId })).toMatchObject({
      status: 200,
      text: expect.stringContaining(namespace),
    })
    const remove = toBinary(DeletePodRequestSchema, create(DeletePodRequestSchema))
    expect(await old('DeletePod', remove, { podId })).toMatchObject({ status: 200 })
    expect(cluster.names('Namespace')).not.toContain(`Namespace /${namespace}`)
  })

  test('that tries again with the same token gets the same answer, and after a change none', async () => {
    const podId = await fundedPod()
    const json = JSON.stringify({
      PodId: podId,
      Operation: `${SERVICE}/ProvisionPod`,
      ExpirationTime: new Date(Date.now() + 60_000).toISOString(),
      Publisher: chain.publisher.toLowerCase(),
    })
    const token = await tokenOf(json, chain.publisherKey)
    expect((await oldCall('ProvisionPod', provision(podId), token)).status).toBe(200)
    expect((await oldCall('ProvisionPod', provision(podId), token)).status).toBe(200)
    await deployed(podId)
    expect(await oldCall('ProvisionPod', provision(podId), token)).toMatchObject({
      status: 401,
      text: expect.stringContaining('has been used already'),
    })
  })

  test('whose token is for another operation, or has expired, is refused by code', async () => {
    const podId = await fundedPod()
    const another = await old('DeletePod', new Uint8Array(), { podId, operation: 'GetPodLogs' })
    expect(another).toMatchObject({ status: 401, text: expect.stringContaining('unauthenticated') })
    const late = await old('ProvisionPod', provision(podId), { podId, expires: -5 })
    expect(late.text).toContain('deadline_exceeded')
  })

  test('cannot have one channel pay for two pods', async () => {
    const [paid, unpaid] = [await fundedPod(), `0x${'ee'.repeat(32)}` as const]
    const answer = await old('ProvisionPod', provision(paid), { podId: unpaid })
    expect(answer).toMatchObject({ status: 401, text: expect.stringContaining('payment.podID') })
  })

  test('hears of what is wrong with its channel or pod in the answer', async () => {
    const podId = await fundedPod()
    const empty = await old('ProvisionPod', provision(`0x${'dd'.repeat(32)}`), {
      podId: `0x${'dd'.repeat(32)}`,
    })
    expect(empty).toMatchObject({
      status: 200,
      text: expect.stringContaining('there is no payment channel'),
    })
    const wrong = provision(podId, {
      payment: payment(podId, { providerAddress: new Uint8Array(20) }),
    })
    expect((await old('ProvisionPod', wrong, { podId })).text).toContain('this cluster is paid at')
    const huge = provision(podId, { pod: { ...OLD_POD, replicas: { min: 0, max: 4_000_000_000 } } })
    expect((await old('ProvisionPod', huge, { podId })).text).toContain(
      'scaling.max: is 4000000000',
    )
    const stolen = provision(podId, {
      pod: { containers: [{ ...OLD_POD.containers[0], image: { url: 'a:b:c' } }] },
    })
    expect((await old('ProvisionPod', stolen, { podId })).text).toContain('containers[0].image')
  })

  test('that updates what is not there is told so', async () => {
    const podId = await fundedPod()
    const update = toBinary(
      UpdatePodRequestSchema,
      create(UpdatePodRequestSchema, { pod: OLD_POD }),
    )
    expect((await old('UpdatePod', update, { podId })).text).toContain('failed_precondition')
  })

  test('that sends what is no message is told so, and the next one is answered', async () => {
    const podId = await fundedPod()
    const junk = await old('ProvisionPod', Uint8Array.of(0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f), {
      podId,
    })
    expect(junk.text).toMatch(/"code":"(internal|invalid_argument)"/)
    expect((await old('ProvisionPod', provision(podId), { podId })).status).toBe(200)
  })
})
