import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, request as httpsRequest, type RequestOptions, type Server } from 'node:https'
import { join } from 'node:path'
import { CID } from 'multiformats/cid'
import { create } from 'multiformats/hashes/digest'
import { Agent, request } from 'undici'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { ClusterBlocks } from '../../../agent/cluster/cluster-blocks.ts'
import { rankedName, rankHomes } from '../../../agent/cluster/rank-homes.ts'
import { HttpServer } from '../../../agent/http-server.ts'
import type { BlockRequest, BlockSource } from '../../../snapshotter/block-source.ts'
import { BlockError } from '../../../snapshotter/errors.ts'
import { freePort } from '../../support/agent.ts'
import {
  makeCertificates,
  type NodeCertificate,
  readCertificate,
} from '../../support/cluster-certificates.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf } from '../../support/memory-blocks.ts'
import { Scratch } from '../../support/scratch.ts'

const scratch = Scratch.open('cluster-blocks')
let ours: NodeCertificate
let theirs: NodeCertificate

beforeAll(async () => {
  ours = (await makeCertificates(join(scratch.dir, 'ours'), ['node'])).node
  theirs = (await makeCertificates(join(scratch.dir, 'theirs'), ['stranger'])).stranger
})
afterAll(() => scratch[Symbol.asyncDispose]())

const signal = AbortSignal.timeout(60_000)
/** Nobody else is asked for speed, however loaded this machine is. */
const patient: BlockRequest = { priority: 'background', signal }
const foreground: BlockRequest = { priority: 'foreground', signal }
const log = { debug() {}, info() {}, warn() {}, error() {} }

type Asked = { readonly cid: string; readonly request: BlockRequest }

/** Gateways and bitswap, to one node. */
class Origin implements BlockSource {
  readonly blocks = new Map<string, Buffer>()
  readonly asked: Asked[] = []
  /** What answers wait for. */
  gate: Promise<unknown> = Promise.resolve()

  add(text: string): CID {
    const block = Buffer.alloc(5_000, text)
    const cid = cidOf(block)
    this.blocks.set(cid.toString(), block)
    return cid
  }

  async get(cid: CID, request: BlockRequest): Promise<Uint8Array> {
    this.asked.push({ cid: cid.toString(), request })
    await this.gate
    const block = this.blocks.get(cid.toString())
    if (block === undefined) throw new BlockError('NOT_FOUND', 'the origin does not have it')
    return new Uint8Array(block)
  }

  /** Answers wait until it is disposed of. */
  hold(): Disposable {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.gate = promise
    return { [Symbol.dispose]: resolve }
  }
}

type TestNode = {
  readonly url: string
  readonly blocks: BlockSource
  readonly shared: ClusterBlocks
  readonly served: number[]
  readonly refused: string[]
  readonly fetched: string[]
  readonly wrong: string[]
  readonly dir: string
  readonly stop: AbortController
  close(): Promise<void>
}

type Settings = {
  readonly answersMax?: number
  readonly uploadBytesPerSecond?: number
  readonly dir?: string
}

let nodes = 0

async function startNode(
  url: string,
  others: readonly string[],
  origin: BlockSource,
  {
    answersMax = 64,
    uploadBytesPerSecond = 1e9,
    dir = join(scratch.dir, `${nodes++}`),
  }: Settings = {},
): Promise<TestNode> {
  const opened = new AsyncDisposableStack()
  const [served, refused, fetched, wrong]: [number[], string[], string[], string[]] = [
    [],
    [],
    [],
    [],
  ]
  const stop = new AbortController()
  const limits = { share: true, cacheBytesMax: 10_000_000, answersMax, uploadBytesPerSecond }
  const shared = opened.use(
    await ClusterBlocks.open(
      { self: url, others },
      { root: dir, blocks: limits },
      {
        origin,
        tls: readCertificate(ours),
        log,
        stop: stop.signal,
        onBytes: (kind) => fetched.push(kind),
        onServed: (bytes) => served.push(bytes),
        onRefused: (why) => refused.push(why),
        onVerificationFailure: (who) => wrong.push(who),
      },
    ),
  )
  const tls = { ...readCertificate(ours), requestCert: true, rejectUnauthorized: true }
  const port = Number(new URL(url).port)
  opened.use(await HttpServer.listen({ host: '127.0.0.1', port }, shared.service, { tls }))
  const close = async (): Promise<void> => {
    stop.abort()
    await opened.disposeAsync()
  }
  onTestFinished(close)
  return { url, blocks: shared.blocks, shared, served, refused, fetched, wrong, dir, stop, close }
}

async function newUrls(count: number): Promise<string[]> {
  const ports = await Promise.all(Array.from({ length: count }, freePort))
  return ports.map((port) => `https://127.0.0.1:${port}`)
}

async function startFleet(
  count: number,
  origin: BlockSource,
  settings?: Settings,
): Promise<TestNode[]> {
  const urls = await newUrls(count)
  return Promise.all(
    urls.map((url) =>
      startNode(
        url,
        urls.filter((other) => other !== url),
        origin,
        settings,
      ),
    ),
  )
}

let made = 0

/** A new block of the origin whose homes are these, in this order. */
function blockOf(origin: Origin, homes: readonly string[], urls: readonly string[]): CID {
  for (;;) {
    const text = `block ${made++} `
    const cid = cidOf(Buffer.alloc(5_000, text))
    const ranked = rankHomes(cid.multihash.digest, urls.map(rankedName)).map(({ name }) => name)
    if (homes.every((home, at) => ranked[at] === home)) return origin.add(text)
  }
}

async function ask(
  url: string,
  path: string,
  headers: Record<string, string> = {},
  certificate: NodeCertificate = ours,
): Promise<{ status: number; retryAfter: unknown; bytes: Buffer }> {
  const tls = readCertificate({ ...certificate, caFile: ours.caFile })
  const dispatcher = new Agent({ connect: { ...tls, checkServerIdentity: () => undefined } })
  try {
    const answer = await request(`${url}${path}`, { dispatcher, headers, signal })
    const bytes = Buffer.from(await answer.body.arrayBuffer())
    return { status: answer.statusCode, retryAfter: answer.headers['retry-after'], bytes }
  } finally {
    await dispatcher.destroy()
  }
}

const rawPath = (cid: CID): string => `/ipfs/${cid.toString()}?format=raw`

test('of blocks that five nodes want at once each leaves the origin once, and every node serves some', async () => {
  const origin = new Origin()
  const cids = Array.from({ length: 60 }, (_, at) => origin.add(`block ${at} `))
  const fleet = await startFleet(5, origin)
  const got = await Promise.all(
    fleet.flatMap(({ blocks }) => cids.map((cid) => blocks.get(cid, patient))),
  )
  for (const [at, bytes] of got.entries()) {
    const cid = cids[at % cids.length] as CID
    expect(cidOf(bytes).toString()).toBe(cid.toString())
  }
  expect(origin.asked.map(({ cid }) => cid).toSorted()).toEqual(cids.map(String).toSorted())
  for (const { served } of fleet) expect(served.length).toBeGreaterThan(0)
})

test('what came once is not asked for again, neither at the origin nor at its home', async () => {
  const origin = new Origin()
  const [one, two] = (await startFleet(2, origin)) as [TestNode, TestNode]
  const cid = blockOf(origin, [two.url], [one.url, two.url])
  await one.blocks.get(cid, patient)
  await expect.poll(() => one.shared.keptBytes).toBe(5_000)
  await one.close()
  const again = await startNode(one.url, [two.url], origin, { dir: one.dir })
  await again.blocks.get(cid, patient)
  expect(two.served).toEqual([5_000])
  expect(again.fetched).toEqual([])
  expect(origin.asked).toHaveLength(1)
})

test('a node answers from its disk after a restart, when there is no origin any more', async () => {
  const origin = new Origin()
  const [one, two] = (await startFleet(2, origin)) as [TestNode, TestNode]
  const cid = blockOf(origin, [two.url], [one.url, two.url])
  await two.blocks.get(cid, patient)
  await expect.poll(() => two.shared.keptBytes).toBe(5_000)
  await two.close()
  await startNode(two.url, [one.url], new Origin(), { dir: two.dir })
  origin.blocks.clear()
  expect(cidOf(await one.blocks.get(cid, patient)).toString()).toBe(cid.toString())
})

test('while a home is down, the node that comes next in the order is the home, for all others', async () => {
  const origin = new Origin()
  const fleet = await startFleet(4, origin)
  const urls = fleet.map(({ url }) => url)
  const [one, two, three, down] = fleet as [TestNode, TestNode, TestNode, TestNode]
  const cid = blockOf(origin, [down.url, two.url], urls)
  await down.close()
  for (const { blocks } of [one, three, two]) await blocks.get(cid, patient)
  expect(origin.asked).toHaveLength(1)
  expect(two.served).toEqual([5_000, 5_000])
})

test('a node that is alone with the origin asks it, and where that is away the nodes that come after', async () => {
  const origin = new Origin()
  const urls = await newUrls(2)
  const [home = '', other = ''] = urls
  const cid = blockOf(origin, [home], urls)
  const own = await startNode(home, [other], origin)
  await own.blocks.get(cid, patient)
  // Others that know nothing of this node fetch for themselves; it can have it from them.
  const lonely = blockOf(origin, [home, other], urls)
  const second = await startNode(other, [], origin)
  await second.blocks.get(lonely, patient)
  origin.blocks.clear()
  expect(cidOf(await own.blocks.get(lonely, patient)).toString()).toBe(lonely.toString())
  expect(own.fetched).toEqual(['cluster'])
})

test('nodes that do not have a block do not ask each other in circles, and the error says what each said', async () => {
  const origin = new Origin()
  const fleet = await startFleet(3, origin)
  const urls = fleet.map(({ url }) => url)
  const [one, two, three] = fleet as [TestNode, TestNode, TestNode]
  const cid = blockOf(origin, [three.url, two.url], urls)
  origin.blocks.clear()
  const failure = await failureOf(() => one.blocks.get(cid, patient))
  expect(failure).toMatchObject({ name: 'BlockError', code: 'NOT_FOUND' })
  expect(failure.message).toBe(
    `block ${cid.toString()} cannot be had: peer ${three.url} does not have it (HTTP 404); peer ${two.url} does not have it (HTTP 404); the origin does not have it`,
  )
  expect(origin.asked).toHaveLength(3)
})

test('whoever has no certificate of the cluster gets nothing', async () => {
  const origin = new Origin()
  const [node] = (await startFleet(1, origin)) as [TestNode]
  const cid = origin.add('secret')
  await expect(ask(node.url, rawPath(cid), {}, theirs)).rejects.toThrow(
    /other side closed|certificate|ECONNRESET/,
  )
  expect(origin.asked).toEqual([])
  expect((await ask(node.url, rawPath(cid))).status).toBe(200)
})

test.each([
  [
    'a block that nobody has',
    '/ipfs/bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku?format=raw',
    404,
  ],
  ['no CID', '/ipfs/x?format=raw', 400],
  ['a path below a CID', '/ipfs/bafkqaaa/etc?format=raw', 400],
  ['a CAR', '/ipfs/bafkqaaa?format=car', 406],
  ['no format', '/ipfs/bafkqaaa', 406],
  ['the empty CID that gateways are probed by', '/ipfs/bafkqaaa?format=raw', 200],
])('asked for %s it answers %s with %i', async (_, path, status) => {
  const [node] = (await startFleet(1, new Origin())) as [TestNode]
  expect((await ask(node.url, path)).status).toBe(status)
})

test('a block whose CID is long is served too', async () => {
  const origin = new Origin()
  const block = Buffer.alloc(5_000, 'long')
  const cid = CID.createV1(0x55, create(0x13, createHash('sha512').update(block).digest()))
  origin.blocks.set(cid.toString(), block)
  const [node] = (await startFleet(1, origin)) as [TestNode]
  expect((await ask(node.url, rawPath(cid))).bytes.equals(block)).toBe(true)
})

test('it says that it works on an answer while the origin does', async () => {
  const origin = new Origin()
  const [node] = (await startFleet(1, origin)) as [TestNode]
  const cid = origin.add('slow')
  const held = origin.hold()
  const options: RequestOptions = { ...readCertificate(ours), checkServerIdentity: () => undefined }
  const asking = httpsRequest(`${node.url}${rawPath(cid)}`, options)
  const answered = once(asking, 'response')
  asking.end()
  for (let sign = 0; sign < 3; sign++) {
    const [{ statusCode }] = (await once(asking, 'information')) as [{ statusCode: number }]
    expect(statusCode).toBe(102)
  }
  held[Symbol.dispose]()
  const [response] = (await answered) as [import('node:http').IncomingMessage]
  expect(response.statusCode).toBe(200)
  response.destroy()
})

test('beyond its answers at once it refuses, prefetching before page faults and background work before both', async () => {
  const origin = new Origin()
  const [node] = (await startFleet(1, origin, { answersMax: 4 })) as [TestNode]
  const [cid, other] = [origin.add('one'), origin.add('other')]
  const held = origin.hold()
  const statusOf = async (urgency: number): Promise<number> =>
    (await ask(node.url, rawPath(other), { priority: `u=${urgency}` })).status
  const waiting: Promise<{ status: number }>[] = []
  const another = async (): Promise<void> => {
    waiting.push(ask(node.url, rawPath(cid), { priority: 'u=1' }))
    // They share one fetch, so what is seen of them is that the next one is refused.
    await expect.poll(() => statusOf(7)).toBe(429)
  }
  waiting.push(ask(node.url, rawPath(cid), { priority: 'u=1' }))
  await expect.poll(() => origin.asked.length).toBe(1)
  await another()
  waiting.push(ask(node.url, rawPath(cid), { priority: 'u=1' }))
  await expect.poll(() => statusOf(4)).toBe(429)
  waiting.push(ask(node.url, rawPath(cid), { priority: 'u=1' }))
  await expect.poll(() => statusOf(1)).toBe(429)
  expect((await ask(node.url, rawPath(other))).retryAfter).toBe('1')
  expect(new Set(node.refused)).toEqual(new Set(['answers']))
  held[Symbol.dispose]()
  expect((await Promise.all(waiting)).map(({ status }) => status)).toEqual([200, 200, 200, 200])
  expect(origin.asked).toHaveLength(1)
})

test('a node whose home refuses asks the next one, and leaves the first alone for a while', async () => {
  const origin = new Origin()
  const urls = await newUrls(3)
  const [one = '', two = '', three = ''] = urls
  // A block of 5,000 bytes is on credit for five seconds.
  const slow = await startNode(two, [one, three], origin, { uploadBytesPerSecond: 1_000 })
  const own = await startNode(one, [two, three], origin)
  const third = await startNode(three, [one, two], origin)
  const [first, second, again] = [0, 1, 2].map(() => blockOf(origin, [two, three], urls)) as [
    CID,
    CID,
    CID,
  ]
  await own.blocks.get(first, patient)
  expect(slow.served).toEqual([5_000])
  await own.blocks.get(second, patient)
  await own.blocks.get(again, patient)
  expect(slow.refused).toEqual(['upload'])
  expect(third.served).toEqual([5_000, 5_000])
})

test('the origin is asked for whom the home was asked for, and told when somebody comes to wait for it', async () => {
  const origin = new Origin()
  const [one, two] = (await startFleet(2, origin)) as [TestNode, TestNode]
  const cid = blockOf(origin, [two.url], [one.url, two.url])
  const held = origin.hold()
  const prefetched = one.blocks.get(cid, { priority: 'prefetch', signal })
  await expect.poll(() => origin.asked.map(({ request }) => request.priority)).toEqual(['prefetch'])
  expect(origin.asked[0]?.request.escalated?.aborted).toBe(false)
  const faulted = one.blocks.get(cid, foreground)
  await expect.poll(() => origin.asked[0]?.request.escalated?.aborted).toBe(true)
  held[Symbol.dispose]()
  await Promise.all([prefetched, faulted])
})

test('a fetch goes on when the one who asked for it leaves, and the next one gets what came of it', async () => {
  const origin = new Origin()
  const [one, two] = (await startFleet(2, origin)) as [TestNode, TestNode]
  const cid = blockOf(origin, [two.url], [one.url, two.url])
  const held = origin.hold()
  const leaver = new AbortController()
  const left = failureOf(() => one.blocks.get(cid, { ...patient, signal: leaver.signal }))
  await expect.poll(() => origin.asked.length).toBe(1)
  leaver.abort()
  expect((await left).code).toBe('CANCELLED')
  held[Symbol.dispose]()
  await one.blocks.get(cid, patient)
  expect(origin.asked).toHaveLength(1)
})

test('a block that is on its way from a node that leaves the cluster still comes, and no other is asked of it', async () => {
  const origin = new Origin()
  const [one, two] = (await startFleet(2, origin)) as [TestNode, TestNode]
  const urls = [one.url, two.url]
  const cid = blockOf(origin, [two.url], urls)
  const held = origin.hold()
  const coming = one.blocks.get(cid, patient)
  await expect.poll(() => origin.asked.length).toBe(1)
  one.shared.follow({ self: one.url, others: [] })
  held[Symbol.dispose]()
  await coming
  expect(one.fetched).toEqual(['cluster'])
  expect(origin.asked).toHaveLength(1)
  await one.blocks.get(blockOf(origin, [two.url], urls), patient)
  expect(two.served).toEqual([5_000])
})

test('a node that comes into the cluster is a home from then on, to others and in its own eyes', async () => {
  const origin = new Origin()
  const [one, two, three] = (await startFleet(3, origin)) as [TestNode, TestNode, TestNode]
  const urls = [one.url, two.url, three.url]
  const follow = (node: TestNode, names: readonly string[], isNamed = true): void =>
    node.shared.follow({
      self: isNamed ? node.url : undefined,
      others: names.filter((name) => name !== node.url),
    })
  for (const node of [one, two]) follow(node, [one.url, two.url])
  follow(three, [], false)
  await one.blocks.get(blockOf(origin, [three.url, two.url], urls), patient)
  expect([two.served, three.served]).toEqual([[5_000], []])
  for (const node of [one, two, three]) follow(node, urls)
  const cid = blockOf(origin, [three.url, two.url], urls)
  for (const { blocks } of [three, two, one]) await blocks.get(cid, patient)
  expect([two.served, three.served]).toEqual([[5_000], [5_000, 5_000]])
})

test('a node that stops waits for no origin: it answers 503', async () => {
  const origin = new Origin()
  const [node] = (await startFleet(1, origin)) as [TestNode]
  const cid = origin.add('never')
  using _ = origin.hold()
  const waiting = ask(node.url, rawPath(cid))
  await expect.poll(() => origin.asked.length).toBe(1)
  node.stop.abort()
  expect((await waiting).status).toBe(503)
})

test('a home that accepts and says nothing is overtaken by the next one, and not asked for the next block', async () => {
  const origin = new Origin()
  const urls = await newUrls(3)
  const [one = '', two = '', silent = ''] = urls
  const asked: string[] = []
  await impostor(silent, (server) => server.on('request', ({ url }) => asked.push(url ?? '')))
  const own = await startNode(one, [two, silent], origin)
  await startNode(two, [one, silent], origin)
  const cid = blockOf(origin, [silent, two], urls)
  expect(cidOf(await own.blocks.get(cid, foreground)).toString()).toBe(cid.toString())
  expect(asked).toEqual([rawPath(cid)])
  expect(own.fetched).toEqual(['cluster'])
  await own.blocks.get(blockOf(origin, [silent, two], urls), foreground)
  expect(asked).toHaveLength(1)
})

test('what a peer sends that is not the block is not used; it is told of, and the peer is a home to nothing any more', async () => {
  const origin = new Origin()
  const urls = await newUrls(2)
  const [one = '', liar = ''] = urls
  const asked: string[] = []
  await impostor(liar, (server) =>
    server.on('request', ({ url }, response) => {
      asked.push(url ?? '')
      response.end('not the block')
    }),
  )
  const own = await startNode(one, [liar], origin)
  const cid = blockOf(origin, [liar], urls)
  expect(cidOf(await own.blocks.get(cid, patient)).toString()).toBe(cid.toString())
  expect(own.wrong).toEqual([`peer ${liar}`])
  await own.blocks.get(blockOf(origin, [liar], urls), patient)
  expect(asked).toHaveLength(1)
})

/** A server with a certificate of the cluster at `url` that answers as it is prepared to. */
async function impostor(url: string, prepare: (server: Server) => void): Promise<void> {
  const server = createServer(readCertificate(ours))
  prepare(server)
  server.listen(Number(new URL(url).port), '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
}
