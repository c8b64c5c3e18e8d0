import { join } from 'node:path'
import {
  Client,
  credentials,
  Metadata,
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServiceError,
  type sendUnaryData,
  status,
} from '@grpc/grpc-js'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { GrpcServer } from '../../../agent/grpc-server.ts'
import { CriImageProxy } from '../../../agent/registries/cri-image-proxy.ts'
import { KubeletPulls } from '../../../agent/registries/kubelet-pulls.ts'
import { criImageContract } from '../../../proto/load.ts'
import { CodedError } from '../../../snapshotter/errors.ts'
import { Scratch } from '../../support/scratch.ts'

// A server of bytes in containerd's place shows what arrives there; test/system/registry-images.test.ts has the real one.

type Received = { readonly path: string; readonly request: Buffer; readonly metadata: Metadata }
type Reply = (received: Received, answer: sendUnaryData<Buffer>) => void

const opened = new AsyncDisposableStack()
const pulls = new KubeletPulls()
const { definition } = criImageContract()
const asIs = (bytes: Buffer): Buffer => bytes
let socketPath: string
let received: Received[]
let reply: Reply
let before: (image: string) => Promise<void>

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('cri-proxy'))
  const containerdSocket = join(scratch.run, 'containerd.sock')
  socketPath = join(scratch.run, 'cri-image.sock')
  const server = new Server()
  const raw = Object.entries(definition).map(([name, method]) => [
    name,
    { ...method, requestDeserialize: asIs, responseSerialize: asIs },
  ])
  const handlers = Object.entries(definition).map(([name, { path }]) => [
    name,
    (call: ServerUnaryCall<Buffer, Buffer>, answer: sendUnaryData<Buffer>) => {
      const one = { path, request: call.request, metadata: call.metadata }
      received.push(one)
      reply(one, answer)
    },
  ])
  server.addService(Object.fromEntries(raw), Object.fromEntries(handlers))
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(`unix:${containerdSocket}`, ServerCredentials.createInsecure(), (error) =>
      error === null ? resolve() : reject(error),
    )
  })
  opened.defer(() => server.forceShutdown())
  const proxy = opened.use(
    new CriImageProxy(containerdSocket, { pulls, beforePull: (image) => before(image) }),
  )
  const log = { debug: () => {}, warn: () => {}, error: () => {} }
  const signal = AbortSignal.timeout(60_000)
  opened.use(await GrpcServer.listen({ socketPath }, [proxy.service], { log, signal }))
})

afterAll(async () => await opened.disposeAsync())

beforeEach(() => {
  received = []
  before = async () => {}
  reply = (_, answer) => answer(null, Buffer.alloc(0))
})

/** A call as the kubelet makes it, of bytes. */
async function call(
  name: keyof typeof definition & string,
  request: Buffer,
  metadata = new Metadata(),
): Promise<Buffer> {
  const client = new Client(`unix:${socketPath}`, credentials.createInsecure())
  try {
    return await new Promise((resolve, reject) => {
      const done = (error: ServiceError | null, response?: Buffer): void =>
        error === null ? resolve(response ?? Buffer.alloc(0)) : reject(error)
      const { path } = definition[name] as { path: string }
      client.makeUnaryRequest(path, asIs, asIs, request, metadata, {}, done)
    })
  } finally {
    client.close()
  }
}

const pullRequest = definition.PullImage.requestSerialize({
  image: { image: 'r.example/app:1' },
  auth: { username: 'alice', password: 's3cret' },
  sandboxConfig: { metadata: { namespace: 'one' } },
})

describe('the image service', () => {
  test.each(Object.keys(definition))(
    'passes %s on, with fields that nobody here knows',
    async (name) => {
      // Field 1000, of five bytes.
      const unknown = Buffer.from([0xc2, 0x3e, 5, ...Buffer.from('later')])
      const request = name === 'PullImage' ? Buffer.concat([pullRequest, unknown]) : unknown
      reply = (_, answer) => answer(null, Buffer.from('any bytes'))
      const metadata = new Metadata()
      metadata.set('traceparent', '00-trace')
      expect((await call(name, request, metadata)).toString()).toBe('any bytes')
      expect(received).toHaveLength(1)
      expect(received[0]?.path).toBe(`/runtime.v1.ImageService/${name}`)
      expect(received[0]?.request.equals(request)).toBe(true)
      expect(received[0]?.metadata.get('traceparent')).toEqual(['00-trace'])
    },
  )

  test('passes failures on as they are', async () => {
    const trailing = new Metadata()
    trailing.set('grpc-status-details-bin', Buffer.from([1, 2, 3]))
    reply = (_, answer) =>
      answer({ code: status.NOT_FOUND, details: 'no such image: 100 %', metadata: trailing })
    const error = (await call('ImageStatus', Buffer.alloc(0)).catch(
      (error: unknown) => error,
    )) as ServiceError
    expect(error).toMatchObject({ code: status.NOT_FOUND, details: 'no such image: 100 %' })
    expect(error.metadata.get('grpc-status-details-bin')).toEqual([Buffer.from([1, 2, 3])])
  })

  test('remembers whom an image is pulled for while it is pulled, and the credentials if that went well', async () => {
    let during: readonly string[] = []
    reply = (_, answer) => {
      during = pulls.namespacesPulling('r.example/app:1')
      answer(null, Buffer.alloc(0))
    }
    await call('PullImage', pullRequest)
    expect(during).toEqual(['one'])
    expect(pulls.namespacesPulling('r.example/app:1')).toEqual([])
    const place = { host: 'r.example', repository: 'app' }
    expect(await pulls.loginsFor(place, { namespaces: ['one'] })).toHaveLength(1)
  })

  test('forgets the credentials of a pull that failed', async () => {
    reply = (_, answer) => answer({ code: status.UNKNOWN, details: '401' })
    const request = definition.PullImage.requestSerialize({
      image: { image: 'r.example/other' },
      auth: { username: 'mallory', password: 'x' },
      sandboxConfig: { metadata: { namespace: 'two' } },
    })
    await call('PullImage', request).catch(() => undefined)
    const place = { host: 'r.example', repository: 'other' }
    expect(await pulls.loginsFor(place, { namespaces: ['two'] })).toEqual([])
  })

  test('asks before a pull, which fails with the answer and does not reach containerd', async () => {
    before = async (image) => {
      throw new CodedError('UNAVAILABLE', `${image} has to wait`)
    }
    const error = await call('PullImage', pullRequest).catch((error: unknown) => error)
    expect(error).toMatchObject({
      code: status.UNAVAILABLE,
      details: 'r.example/app:1 has to wait',
    })
    expect(received).toEqual([])
  })

  test('passes on what it cannot read', async () => {
    await call('PullImage', Buffer.from([0xff, 0xff, 0xff]))
    expect(received[0]?.request).toEqual(Buffer.from([0xff, 0xff, 0xff]))
  })
})
