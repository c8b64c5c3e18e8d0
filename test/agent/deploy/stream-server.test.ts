import { once } from 'node:events'
import { createServer, request as httpRequest } from 'node:http'
import { create, toBinary } from '@bufbuild/protobuf'
import { createClient } from '@connectrpc/connect'
import { connectNodeAdapter } from '@connectrpc/connect-node'
import { createConnectTransport } from '@connectrpc/connect-web'
import { generateKeyPair } from '@libp2p/crypto/keys'
import type { Libp2p, Stream } from '@libp2p/interface'
import { describe, expect, test } from 'vitest'
import { startClientHost } from '../../../agent/client/client-host.ts'
import { streamFetch } from '../../../agent/client/stream-fetch.ts'
import { startDeployHost } from '../../../agent/deploy/deploy-host.ts'
import { StreamServer } from '../../../agent/deploy/stream-server.ts'
import { ProvisionPodService } from '../../../proto/messages/apocryph/provision-pod_pb.js'
import { DeployService, LogsRequestSchema } from '../../../proto/messages/ipdr/deploy_pb.js'
import { seeded } from '../../support/seeded.ts'

const PROTOCOL = '/ipdr/deploy/1.0.0'
const OLD = '/x/trusted-pods/provision-pod/0.0.1'

type Hosts = AsyncDisposable & {
  readonly agent: Libp2p
  readonly client: Libp2p
  readonly servers: readonly StreamServer[]
  readonly aborted: Promise<void>
  /** Lines that the answering side has got rid of. */
  readonly sent: () => number
  open(protocol?: string): Promise<Stream>
  service(): ReturnType<typeof createClient<typeof DeployService>>
}

/** Two hosts, one of which answers as the deploy endpoint does. */
async function startHosts(listen = '/ip4/127.0.0.1/tcp/0'): Promise<Hosts> {
  await using opened = new AsyncDisposableStack()
  const aborted = Promise.withResolvers<void>()
  let sent = 0
  const agent = await startDeployHost(
    { listen: [listen], announce: [], denied: [], connectionsMax: 100 },
    await generateKeyPair('Ed25519'),
  )
  opened.defer(() => agent.stop())
  const client = await startClientHost()
  opened.defer(() => client.stop())
  const answer = connectNodeAdapter({
    routes: (router) => {
      router.service(DeployService, {
        capacity: (_request, { requestHeader }) => ({ agent: requestHeader.get('x-who') ?? '' }),
        async *logs({ follow, tail }, { signal }) {
          for (let line = 0; line < tail; line++) {
            yield { line: `line ${line} ${'x'.repeat(10_000)}` }
            sent++
          }
          if (!follow) return
          await once(signal, 'abort')
          aborted.resolve()
        },
      })
      router.service(ProvisionPodService, {
        deletePod: () => ({ success: true }),
      })
    },
  })
  const servers = [
    opened.use(await StreamServer.listen({ protocols: [PROTOCOL] }, answer, { libp2p: agent })),
    opened.use(
      await StreamServer.listen({ protocols: [OLD], isOfOldClients: true }, answer, {
        libp2p: agent,
      }),
    ),
  ]
  const addresses = agent.getMultiaddrs()
  const open = (protocol = PROTOCOL): Promise<Stream> => client.dialProtocol(addresses, protocol)
  const fetch = streamFetch(() => open())
  const transport = createConnectTransport({
    baseUrl: 'http://agent',
    fetch,
    useBinaryFormat: true,
  })
  const all = opened.move()
  return {
    agent,
    client,
    servers,
    aborted: aborted.promise,
    sent: () => sent,
    open,
    service: () => createClient(DeployService, transport),
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  }
}

/** What comes back for these bytes until `isEnough`, or the end. */
async function exchange(
  stream: Stream,
  pieces: readonly Uint8Array[],
  isEnough: (text: string) => boolean = () => false,
): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>()
  let text = ''
  stream.addEventListener('message', ({ data }) => {
    text += Buffer.from(data.subarray()).toString('latin1')
    if (isEnough(text)) resolve(text)
  })
  stream.addEventListener('end', () => resolve(text))
  stream.addEventListener('close', () => resolve(text))
  for (const piece of pieces) if (!stream.send(piece)) await stream.onDrain()
  return await promise
}

const bytes = (text: string): Uint8Array => Buffer.from(text, 'latin1')

describe.each(['/ip4/127.0.0.1/tcp/0', '/ip4/127.0.0.1/tcp/0/ws'])('over %s', (listen) => {
  test('a call is answered', async () => {
    await using hosts = await startHosts(listen)
    const { agent } = await hosts.service().capacity({}, { headers: { 'x-who': 'a publisher' } })
    expect(agent).toBe('a publisher')
  })

  test('a hundred calls are answered one after the other, and leave no stream open', async () => {
    await using hosts = await startHosts(listen)
    for (let call = 0; call < 100; call++) {
      const headers = { 'x-who': String(call) }
      expect((await hosts.service().capacity({}, { headers })).agent).toBe(String(call))
    }
    await expect.poll(() => hosts.servers[0]?.streams).toBe(0)
  })

  test('an answer of 20 MB in many messages comes whole and in order', async () => {
    await using hosts = await startHosts(listen)
    const lines: string[] = []
    for await (const { line } of hosts.service().logs({ tail: 2_000 })) lines.push(line.slice(0, 8))
    expect(lines).toEqual(Array.from({ length: 2_000 }, (_, n) => `line ${n} xx`.slice(0, 8)))
  })

  test('who stops listening is noticed by whoever answers', async () => {
    await using hosts = await startHosts(listen)
    const stop = new AbortController()
    const lines = hosts.service().logs({ tail: 1, follow: true }, { signal: stop.signal })
    await expect(
      (async () => {
        for await (const _ of lines) stop.abort()
      })(),
    ).rejects.toMatchObject({ rawMessage: expect.stringContaining('abort') })
    await hosts.aborted
  })

  test('an answer that breaks off is an error, not an end', async () => {
    await using hosts = await startHosts(listen)
    const lines = hosts.service().logs({ tail: 1, follow: true })
    const read = (async () => {
      for await (const _ of lines) await hosts.servers[0]?.[Symbol.asyncDispose]()
    })()
    await expect(read).rejects.toMatchObject({
      code: 14,
      rawMessage: expect.stringContaining('the connection to the agent broke'),
    })
  })
})

describe('existing clients', () => {
  const path = '/apocryph.proto.v0.provisionPod.ProvisionPodService/DeletePod'
  const inChunks = `POST ${path} HTTP/1.2\r\nauthorization: Bearer e30=.e30=\r\nconnect-protocol-version: 1\r\ncontent-type: application/proto\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\nuser-agent: connect-es/1.2.0\r\n\r\n0\r\n\r\n\r\n`

  test('that say HTTP/1.2, and end with one line break too many, get an answer with its length and a reason', async () => {
    await using hosts = await startHosts()
    const answer = await exchange(await hosts.open(OLD), [bytes(inChunks)], (text) =>
      text.endsWith('\x08\x01'),
    )
    expect(answer).toMatch(/^HTTP\/1\.1 200 OK\r\n/)
    expect(answer).toMatch(/\r\ncontent-length: 2\r\n/i)
    expect(answer).not.toMatch(/transfer-encoding/i)
    for (const line of answer.slice(0, answer.indexOf('\r\n\r\n')).split('\r\n').slice(1)) {
      expect(line).toMatch(/^[^:]+: .+$/)
    }
  })

  test('send a hundred requests on one stream', async () => {
    await using hosts = await startHosts()
    const stream = await hosts.open(OLD)
    let seen = ''
    for (let call = 0; call < 100; call++) {
      const answer = await exchange(stream, [bytes(inChunks)], (text) => text.endsWith('\x08\x01'))
      seen = answer
    }
    expect(seen).toContain('200 OK')
    expect(stream.status).toBe('open')
  })

  test('send their bytes in pieces of any size', async () => {
    const random = seeded(5)
    await using hosts = await startHosts()
    for (let round = 0; round < 20; round++) {
      const pieces: Uint8Array[] = []
      for (let at = 0; at < inChunks.length; ) {
        const end = Math.min(inChunks.length, at + 1 + random(40))
        pieces.push(bytes(inChunks.slice(at, end)))
        at = end
      }
      const answer = await exchange(await hosts.open(OLD), pieces, (text) =>
        text.endsWith('\x08\x01'),
      )
      expect(answer).toContain('200 OK')
    }
  })

  test('open a stream and close it without a word', async () => {
    await using hosts = await startHosts()
    for (let call = 0; call < 10; call++) await (await hosts.open(OLD)).close()
    await expect.poll(() => hosts.servers[1]?.streams).toBe(0)
    expect((await hosts.service().capacity({})).agent).toBe('')
  })

  test('that close their end, as Kubo has them, want no answer any more', async () => {
    await using hosts = await startHosts()
    const stream = await hosts.open(OLD)
    const message = toBinary(
      LogsRequestSchema,
      create(LogsRequestSchema, { tail: 1, follow: true }),
    )
    const head = `POST /ipdr.deploy.v1.DeployService/Logs HTTP/1.1\r\nhost: a\r\ncontent-type: application/connect+proto\r\ncontent-length: ${5 + message.length}\r\n\r\n`
    const answer = exchange(stream, [
      bytes(head),
      Buffer.concat([Buffer.of(0, 0, 0, 0, message.length), message]),
    ])
    await expect.poll(() => hosts.sent()).toBe(1)
    await stream.close()
    await hosts.aborted
    await answer
    await expect.poll(() => hosts.servers[1]?.streams).toBe(0)
  })

  test('are the only ones who may say HTTP/1.2', async () => {
    await using hosts = await startHosts()
    const answer = await exchange(await hosts.open(PROTOCOL), [bytes(inChunks)])
    expect(answer).toMatch(/^HTTP\/1\.1 400 /)
  })
})

describe('hostile peers', () => {
  test('that send what is no HTTP are cut off, and others are answered', async () => {
    const random = seeded(23)
    await using hosts = await startHosts()
    for (let round = 0; round < 50; round++) {
      const junk = Uint8Array.from({ length: 1 + random(2_000) }, () => random(256))
      const stream = await hosts.open(random(2) === 0 ? OLD : PROTOCOL)
      const done = exchange(stream, [junk, bytes('\r\n\r\n')])
      await stream.close().catch(() => undefined)
      await done
    }
    expect((await hosts.service().capacity({})).agent).toBe('')
    await expect.poll(() => hosts.servers.map(({ streams }) => streams)).toEqual([0, 0])
  })

  test('that never end their headers, byte by byte, are cut off after ten seconds', async () => {
    await using hosts = await startHosts()
    const stream = await hosts.open()
    const began = performance.now()
    const dripping = setInterval(() => {
      try {
        stream.send(bytes('a'))
      } catch {
        clearInterval(dripping)
      }
    }, 100)
    const answer = await exchange(stream, [bytes('POST / HTTP/1.1\r\n')])
    clearInterval(dripping)
    expect(answer).toMatch(/^(HTTP\/1\.1 408 .*)?/)
    expect(performance.now() - began).toBeGreaterThan(9_000)
  })

  test('that open a stream and say nothing are cut off as well', async () => {
    await using hosts = await startHosts()
    const streams = await Promise.all(Array.from({ length: 50 }, () => hosts.open()))
    await expect.poll(() => hosts.servers[0]?.streams).toBe(50)
    await expect.poll(() => hosts.servers[0]?.streams, { timeout: 20_000 }).toBe(0)
    const isOver = ({ status, remoteWriteStatus }: Stream): boolean =>
      status !== 'open' || remoteWriteStatus === 'closed'
    await expect.poll(() => streams.every(isOver)).toBe(true)
  })

  test('whose headers are too long are told so', async () => {
    await using hosts = await startHosts()
    const answer = await exchange(await hosts.open(), [
      bytes(`POST / HTTP/1.1\r\nx: ${'y'.repeat(20_000)}\r\n\r\n`),
    ])
    expect(answer).toMatch(/^HTTP\/1\.1 431 /)
  })

  test('have 64 streams a connection, not more', async () => {
    await using hosts = await startHosts()
    await hosts.open()
    const streams = await Promise.allSettled(Array.from({ length: 100 }, () => hosts.open()))
    const open = streams.filter(({ status }) => status === 'fulfilled')
    await expect.poll(() => hosts.servers[0]?.streams).toBeLessThanOrEqual(64)
    expect(open.length).toBeGreaterThan(0)
  })

  test('that do not read what they ask for are not sent more than a few megabytes', async () => {
    await using hosts = await startHosts()
    const stream = await hosts.open()
    stream.pause()
    const message = toBinary(LogsRequestSchema, create(LogsRequestSchema, { tail: 5_000 }))
    const head = `POST /ipdr.deploy.v1.DeployService/Logs HTTP/1.1\r\nhost: a\r\ncontent-type: application/connect+proto\r\ncontent-length: ${5 + message.length}\r\n\r\n`
    stream.send(Buffer.concat([bytes(head), Buffer.of(0, 0, 0, 0, message.length), message]))
    let before = -1
    await expect
      .poll(
        () => {
          const isStill = hosts.sent() > 0 && hosts.sent() === before
          before = hosts.sent()
          return isStill
        },
        { interval: 500, timeout: 20_000 },
      )
      .toBe(true)
    // Of 50 MB: a window, and the buffers of HTTP.
    expect(hosts.sent()).toBeLessThan(500)
  })
})

test('Node’s own server and client agree with ours on what an answer is', async () => {
  await using hosts = await startHosts()
  const plain = createServer(
    connectNodeAdapter({
      routes: (router) => void router.service(DeployService, { capacity: () => ({ agent: '' }) }),
    }),
  ).listen(0, '127.0.0.1')
  await once(plain, 'listening')
  const address = plain.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  const body = bytes('')
  const ask = httpRequest({
    port: address.port,
    method: 'POST',
    path: '/ipdr.deploy.v1.DeployService/Capacity',
    headers: { 'content-type': 'application/proto', 'content-length': 0 },
  })
  ask.end(body)
  const [response] = (await once(ask, 'response')) as [
    { headers: Record<string, string>; resume(): void },
  ]
  response.resume()
  const answer = await exchange(
    await hosts.open(),
    [
      bytes(
        'POST /ipdr.deploy.v1.DeployService/Capacity HTTP/1.1\r\nhost: a\r\ncontent-type: application/proto\r\ncontent-length: 0\r\n\r\n',
      ),
    ],
    (text) => text.includes('\r\n\r\n'),
  )
  plain.close()
  expect(answer.toLowerCase()).toContain(`content-type: ${response.headers['content-type']}`)
  expect(answer.toLowerCase()).toContain(`content-length: ${response.headers['content-length']}`)
})
