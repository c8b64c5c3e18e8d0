import type { ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { fastify } from 'fastify'
import type { CID } from 'multiformats/cid'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { BLOCK_BYTES_MAX } from '../../../agent/ipfs/block-provider.ts'
import { GatewayClient } from '../../../agent/ipfs/gateway-client.ts'
import { gatewayService } from '../../../agent/ipfs/gateway-service.ts'
import { ReusedMemory } from '../../../snapshotter/reused-memory.ts'
import { BlockPeer, type Misbehaviour } from '../../support/block-peer.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'

const never = new AbortController().signal
const log = { debug() {}, info() {}, warn() {}, error() {} }

function randomBlocks(count: number, length: number): { cid: CID; block: Uint8Array }[] {
  const random = seeded(5)
  return Array.from({ length: count }, () => {
    const block = Uint8Array.from({ length }, () => random(256))
    return { cid: cidOf(block), block }
  })
}
const asMap = (blocks: { cid: CID; block: Uint8Array }[]): Map<string, Uint8Array> =>
  new Map(blocks.map(({ cid, block }) => [cid.toString(), block]))

test('blocks come verified, many at once, over at most eight kept connections', async () => {
  const blocks = randomBlocks(60, 5_000)
  await using peer = await BlockPeer.serve(asMap(blocks))
  await using gateway = new GatewayClient(peer.url)
  for (let round = 0; round < 2; round++) {
    const got = await Promise.all(blocks.map(({ cid }) => gateway.get(cid, never)))
    expect(got.map((bytes) => Buffer.from(bytes))).toEqual(
      blocks.map(({ block }) => Buffer.from(block)),
    )
  }
  expect(peer.connections).toBeLessThanOrEqual(8)
  expect(peer.asked.length).toBe(120)
  expect(gateway.health.latencyMs).toBeGreaterThan(0)
  expect(gateway.health.standing).toBe(0)
})

test('an answer without a length is read to its end, and an empty block is a block', async () => {
  const [long] = randomBlocks(1, 300_000)
  if (long === undefined) throw new Error('one block')
  await using peer = await BlockPeer.serve(new Map(), (_request, response) => {
    response.writeHead(200)
    for (let at = 0; at < long.block.length; at += 50_000)
      response.write(long.block.subarray(at, at + 50_000))
    response.end()
  })
  await using gateway = new GatewayClient(peer.url)
  expect(Buffer.compare(await gateway.get(long.cid, never), long.block)).toBe(0)
  peer.misbehaviour = (_request, response) =>
    void response.writeHead(200, { 'content-length': 0 }).end()
  expect(await gateway.get(cidOf(new Uint8Array()), never)).toHaveLength(0)
})

test('a block of a length that is told is received in the memory that was given for it, and verified there', async () => {
  const [one, other] = randomBlocks(2, 100_000)
  if (one === undefined || other === undefined) throw new Error('two blocks')
  await using peer = await BlockPeer.serve(asMap([one, other]))
  await using gateway = new GatewayClient(peer.url)
  using memory = new ReusedMemory()
  const errand = { priority: 'prefetch', escalated: never, isWorking: () => {}, memory } as const
  const got = await gateway.get(one.cid, never, errand)
  expect(Buffer.compare(got, one.block)).toBe(0)
  memory.giveBack(got)
  const next = await gateway.get(other.cid, never, errand)
  expect(next.buffer).toBe(got.buffer)
  expect(Buffer.compare(next, other.block)).toBe(0)
})

test('a gateway is told for whom a block is, and heard when it says that it works on it', async () => {
  const [one] = randomBlocks(1, 100_000)
  if (one === undefined) throw new Error('one block')
  const urgencies: unknown[] = []
  await using peer = await BlockPeer.serve(new Map(), ({ headers }, response) => {
    urgencies.push(headers['priority'])
    response.writeProcessing()
    response.writeProcessing()
    response.end(one.block)
  })
  await using gateway = new GatewayClient(peer.url)
  const heard: string[] = []
  const got = await gateway.get(one.cid, never, {
    priority: 'prefetch',
    escalated: never,
    isWorking: () => heard.push('works'),
    isSending: () => heard.push('sends'),
  })
  expect(Buffer.compare(got, one.block)).toBe(0)
  expect(urgencies).toEqual(['u=4'])
  expect(heard.slice(0, 3)).toEqual(['works', 'works', 'sends'])
  await gateway.get(one.cid, never)
  expect(urgencies[1]).toBeUndefined()
})

test('a gateway below a path is asked there, with or without its /ipfs', async () => {
  for (const url of ['', '/', '/below', '/below/ipfs/']) {
    const [one] = randomBlocks(1, 10)
    if (one === undefined) throw new Error('one block')
    const paths: string[] = []
    await using peer = await BlockPeer.serve(new Map(), ({ url, headers }, response) => {
      paths.push(`${url} ${headers.accept}`)
      response.end(one.block)
    })
    await using gateway = new GatewayClient(`${peer.url}${url}`)
    await gateway.get(one.cid, never)
    const prefix = url.startsWith('/below') ? '/below' : ''
    expect(paths).toEqual([
      `${prefix}/ipfs/${one.cid.toString()}?format=raw application/vnd.ipld.raw`,
    ])
  }
})

const [wanted] = randomBlocks(1, 1_000)
const raw = (response: ServerResponse): Socket => response.socket as Socket
const hostile: [string, Misbehaviour, string, RegExp, 0 | 1 | 2][] = [
  [
    'says 404',
    (_, response) => void response.writeHead(404).end('no'),
    'NOT_FOUND',
    /does not have it \(HTTP 404\)/,
    0,
  ],
  ['says 410', (_, response) => void response.writeHead(410).end(), 'NOT_FOUND', /HTTP 410/, 0],
  [
    'says 500',
    (_, response) => void response.writeHead(500).end('<html>'),
    'UNAVAILABLE',
    /answers HTTP 500/,
    1,
  ],
  [
    'says 429 and when to come back',
    (_, response) => void response.writeHead(429, { 'retry-after': '30' }).end(),
    'UNAVAILABLE',
    /answers HTTP 429/,
    1,
  ],
  [
    'sends us elsewhere',
    (_, response) => void response.writeHead(302, { location: 'http://elsewhere/' }).end(),
    'UNAVAILABLE',
    /points to http:\/\/elsewhere\/; put the address that serves raw blocks itself in the config/,
    1,
  ],
  [
    'sends other bytes',
    (_, response) => void response.end(Buffer.alloc(1_000)),
    'DATA_LOSS',
    /sent wrong bytes: block bafk.*: 1000 bytes with digest .* came, its CID says/,
    2,
  ],
  [
    'sends the block and a byte more',
    (_, response) => void response.end(Buffer.concat([wanted?.block ?? Buffer.of(), Buffer.of(0)])),
    'DATA_LOSS',
    /1001 bytes/,
    2,
  ],
  [
    'announces 3 GiB',
    (_, response) => {
      response.writeHead(200, { 'content-length': 3 * 2 ** 30 })
      response.write(Buffer.alloc(65_536))
    },
    'DATA_LOSS',
    /has 3221225472 bytes or more/,
    2,
  ],
  [
    'never stops sending',
    (_, response) => {
      response.writeHead(200)
      const pour = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536)));
        if (!response.destroyed) response.once('drain', pour)
      }
      pour()
    },
    'DATA_LOSS',
    new RegExp(`has 21\\d{5} bytes or more, a block may have ${BLOCK_BYTES_MAX}`),
    2,
  ],
  ['accepts and says nothing', () => undefined, 'UNAVAILABLE', /sent nothing for 150 ms/, 1],
  [
    'stops in the middle',
    (_, response) => {
      response.writeHead(200, { 'content-length': 1_000 })
      response.write(Buffer.alloc(500))
    },
    'UNAVAILABLE',
    /sent nothing for 150 ms/,
    1,
  ],
  [
    'trickles a byte at a time',
    (_, response) => {
      response.writeHead(200, { 'content-length': 1_000 })
      const timer = setInterval(() => response.write(Buffer.of(0)), 20)
      response.once('close', () => clearInterval(timer))
    },
    'UNAVAILABLE',
    /has not finished the block for 600 ms/,
    1,
  ],
  [
    'closes in the middle',
    (_, response) => {
      response.writeHead(200, { 'content-length': 1_000 })
      response.write(Buffer.alloc(500), () => raw(response).destroy())
    },
    'UNAVAILABLE',
    /failed: /,
    1,
  ],
  [
    'closes before it answers',
    (_, response) => void raw(response).destroy(),
    'UNAVAILABLE',
    /failed: /,
    1,
  ],
  [
    'speaks another protocol',
    (_, response) => void raw(response).end('SSH-2.0-OpenSSH_9.2p1\r\n'),
    'UNAVAILABLE',
    /failed: /,
    1,
  ],
]
test.each(hostile)(
  'a gateway that %s fails the get, and stands as it should',
  async (_, misbehaviour, code, reason, standing) => {
    if (wanted === undefined) throw new Error('one block')
    await using peer = await BlockPeer.serve(new Map(), misbehaviour)
    await using gateway = new GatewayClient(peer.url, { stallMs: 150, blockMs: 600 })
    const failure = await failureOf(() => gateway.get(wanted.cid, never))
    expect(failure).toMatchObject({ name: 'BlockError', code })
    expect(failure.message).toMatch(reason)
    expect(failure.message).toContain(peer.url)
    expect(gateway.health.standing).toBe(standing)
  },
)

test('a gateway that nobody runs cannot be reached', async () => {
  const peer = await BlockPeer.serve(new Map())
  await peer[Symbol.asyncDispose]()
  await using gateway = new GatewayClient(peer.url)
  const failure = await failureOf(() => gateway.get(cidOf(Buffer.from('x')), never))
  expect(failure.code).toBe('UNAVAILABLE')
  expect(failure.message).toMatch(/ECONNREFUSED/)
})

test('a get that is cancelled ends at once, also when it waits for a connection', async () => {
  const [first] = randomBlocks(1, 10)
  if (first === undefined) throw new Error('one block')
  let stalled = 0
  const eight = Promise.withResolvers<void>()
  await using peer = await BlockPeer.serve(new Map(), () => {
    if (++stalled === 8) eight.resolve()
  })
  await using gateway = new GatewayClient(peer.url)
  const stop = new AbortController()
  const gets = Array.from({ length: 12 }, () =>
    failureOf(() => gateway.get(first.cid, stop.signal)),
  )
  await eight.promise
  stop.abort()
  for (const failure of await Promise.all(gets)) expect(failure.code).toBe('CANCELLED')
  const late = AbortSignal.abort(new DOMException('late', 'TimeoutError'))
  expect((await failureOf(() => gateway.get(first.cid, late))).code).toBe('DEADLINE_EXCEEDED')
  expect(gateway.health.standing).toBe(0)
})

test('an address that is no gateway is refused when it is configured', async () => {
  for (const url of ['ftp://x/', 'not a url', '']) {
    expect((await failureOf(() => new GatewayClient(url))).code).toBe('INVALID_ARGUMENT')
  }
})

describe('a file in one piece', () => {
  const content = Buffer.from('what the file has')
  const memory = new MemoryBlocks()
  const app = fastify({ forceCloseConnections: true })
  let root = cidOf(content)
  let directory: Uint8Array = new Uint8Array()
  let carBytes: Buffer = Buffer.alloc(0)
  beforeAll(async () => {
    root = await memory.addDirectory({ 'start.car': content })
    directory = memory.blocks.get(root.toString()) ?? directory
    const blocks = {
      get: async (cid: CID) => memory.blocks.get(cid.toV1().toString()),
    }
    await app.register(gatewayService({ blocks, log }))
    const path = `/ipfs/${root.toString()}/start.car?format=car`
    carBytes = (await app.inject(path)).rawPayload
    await app.listen({ host: '127.0.0.1', port: 0 })
  })
  afterAll(() => app.close())

  const collected = async (gateway: GatewayClient, bytesMax = 10_000): Promise<string[]> => {
    const cids: string[] = []
    const path = { root, names: ['start.car'], bytesMax }
    for await (const { cid } of gateway.along(path, never)) cids.push(cid.toString())
    return cids
  }

  test('comes with the directory that it is in, from a gateway of ours', async () => {
    const { port } = app.server.address() as AddressInfo
    await using gateway = new GatewayClient(`http://127.0.0.1:${port}`)
    expect(await collected(gateway)).toEqual([root.toString(), cidOf(content).toString()])
    const none = { root, names: ['none'], bytesMax: 10_000 }
    expect(await failureOf(() => Array.fromAsync(gateway.along(none, never)))).toMatchObject({
      code: 'NOT_FOUND',
      message: expect.stringContaining('HTTP 404') as string,
    })
    expect(gateway.health.standing).toBe(0)
  })

  test('has more connections made while it comes, of which a burst of blocks then needs none', async () => {
    const blocks = randomBlocks(20, 1000)
    const probes: string[] = []
    await using peer = await BlockPeer.serve(asMap(blocks), (request, response) => {
      if (request.url?.includes('bafkqaaa') === true) probes.push(request.url)
      response.writeHead(200).end(request.url?.includes('start.car') === true ? carBytes : '')
    })
    await using gateway = new GatewayClient(peer.url)
    expect(await collected(gateway)).toHaveLength(2)
    await vi.waitFor(() => expect(probes.length).toBe(6))
    const { connections } = peer
    expect(connections).toBe(7)
    peer.misbehaviour = undefined
    await Promise.all(blocks.slice(0, 7).map(({ cid }) => gateway.get(cid, never)))
    expect(peer.connections).toBe(connections)
    expect(await collected(gateway).catch(() => [])).toEqual([])
    expect(probes.length).toBe(6)
  })

  const sends =
    (bytes: () => Uint8Array, end = true): Misbehaviour =>
    (_request, response) => {
      response.writeHead(200)
      response.write(bytes(), () => (end ? response.end() : response.destroy()))
    }
  const lie = (): Buffer => {
    const wrong = Buffer.from(carBytes)
    wrong[wrong.length - 1] = 0
    return wrong
  }

  test.each([
    ['is a web page', sends(() => Buffer.from('<html>')), 'INVALID_ARGUMENT', 0],
    ['has a block that is another', sends(lie), 'DATA_LOSS', 2],
    [
      'has more than was asked for',
      sends(() => Buffer.concat([carBytes, Buffer.alloc(10_000)])),
      'OUT_OF_RANGE',
      0,
    ],
    ['ends before its end', sends(() => carBytes.subarray(0, -3)), 'INVALID_ARGUMENT', 0],
    ['breaks off', sends(() => carBytes.subarray(0, -3), false), 'UNAVAILABLE', 1],
    [
      'is refused',
      (_request: unknown, response: ServerResponse) =>
        void response.writeHead(406).end('no CARs here'),
      'NOT_FOUND',
      0,
    ],
  ] as const)(
    'that %s is an error, and the gateway serves on',
    async (_, misbehaviour, code, standing) => {
      await using peer = await BlockPeer.serve(memory.blocks, misbehaviour)
      await using gateway = new GatewayClient(peer.url)
      expect(await failureOf(() => collected(gateway))).toMatchObject({ code })
      expect(gateway.health.standing).toBe(standing)
      peer.misbehaviour = undefined
      expect(Buffer.from(await gateway.get(root, never))).toEqual(Buffer.from(directory))
    },
  )

  test('that nobody waits for any more ends, however little has come', async () => {
    const asked = Promise.withResolvers<void>()
    await using peer = await BlockPeer.serve(new Map(), (_request, response) => {
      response.writeHead(200)
      response.write(carBytes.subarray(0, 10))
      asked.resolve()
    })
    await using gateway = new GatewayClient(peer.url)
    const gone = new AbortController()
    const path = { root, names: ['start.car'], bytesMax: 10_000 }
    const failure = failureOf(() => Array.fromAsync(gateway.along(path, gone.signal)))
    await asked.promise
    gone.abort()
    expect(await failure).toMatchObject({ code: 'CANCELLED' })
    expect(gateway.health.standing).toBe(0)
  })
})
