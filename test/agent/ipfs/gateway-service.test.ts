import { connect } from 'node:net'
import { CarReader } from '@ipld/car'
import { fastify } from 'fastify'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type GatewayBlocks, gatewayService } from '../../../agent/ipfs/gateway-service.ts'
import { UnixfsFile } from '../../../snapshotter/dag/unixfs-file.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'

const log = { debug() {}, info() {}, warn() {}, error() {} }
const { signal } = new AbortController()
const random = seeded(11)
const content = Uint8Array.from({ length: 600_000 }, () => random(256))
const memory = new MemoryBlocks()
/** Arrays that answers are sent from, and those of them that came back. */
const lent = { taken: new Set<Uint8Array>(), given: 0 }
const lender = {
  take: (bytes: number): Uint8Array => {
    const array = new Uint8Array(bytes)
    lent.taken.add(array)
    return array
  },
  giveBack: (array: Uint8Array): void => {
    if (lent.taken.delete(array)) lent.given++
  },
}
/** Blocks that the disk cannot read. */
const broken = new Set<string>()
const app = fastify({ forceCloseConnections: true })
let root: CID
let origin = ''

beforeAll(async () => {
  root = await memory.addFile(content, { chunker: fixedSize({ chunkSize: 20_000 }) })
  const blocks: GatewayBlocks = {
    get: async (cid, into) => {
      if (broken.has(cid.toString())) throw new Error('EIO: the disk cannot read it')
      const block = memory.blocks.get(cid.toV1().toString())
      if (block === undefined || into === undefined) return block
      const array = into.take(block.length)
      array.set(block)
      return array
    },
  }
  await app.register(gatewayService({ blocks, memory: lender, log }))
  origin = await app.listen({ host: '127.0.0.1', port: 0 })
})
afterAll(() => app.close())

const get = (path: string, init?: RequestInit): Promise<Response> => fetch(`${origin}${path}`, init)
/** The bytes of an answer to exactly this path. */
const rawGet = async (path: string): Promise<string> => {
  const { hostname, port } = new URL(origin)
  const socket = connect(Number(port), hostname)
  socket.write(`GET ${path} HTTP/1.1\r\nhost: ${hostname}\r\nconnection: close\r\n\r\n`)
  const chunks: Buffer[] = []
  for await (const chunk of socket) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks).toString()
}
const blocksOf = async (response: Response): Promise<string[]> => {
  const car = await CarReader.fromBytes(new Uint8Array(await response.arrayBuffer()))
  expect((await car.getRoots()).map(String)).toEqual([root.toString()])
  const cids: string[] = []
  for await (const { cid } of car.blocks()) cids.push(cid.toString())
  return cids
}

test('raw blocks by query or Accept, for GET and HEAD, kept for ever by caches', async () => {
  const block = memory.blocks.get(root.toString())
  for (const [path, init] of [
    [`/ipfs/${root.toString()}?format=raw`, {}],
    [`/ipfs/${root.toString()}`, { headers: { accept: 'application/vnd.ipld.raw' } }],
    [`/ipfs/${CID.createV0(root.multihash as never).toString()}?format=raw`, {}],
  ] as const) {
    const response = await get(path, init)
    expect(response.headers.get('content-type')).toBe('application/vnd.ipld.raw')
    expect(response.headers.get('cache-control')).toMatch(/immutable/)
    expect(Buffer.from(await response.arrayBuffer())).toEqual(Buffer.from(block ?? []))
    const head = await get(path, { ...init, method: 'HEAD' })
    expect(head.headers.get('content-length')).toBe(String(block?.length))
    const etag = response.headers.get('etag') ?? ''
    const again = await get(`/ipfs/${root.toString()}?format=raw`, {
      headers: { 'if-none-match': etag },
    })
    expect(again.status).toBe(304)
  }
})

test('what a raw block was sent from is given back once it is out, or nobody wants it', async () => {
  const before = lent.given
  const path = `/ipfs/${root.toString()}?format=raw`
  await (await get(path)).arrayBuffer()
  await get(path, { method: 'HEAD' })
  await expect.poll(() => lent.given).toBe(before + 2)
  const { port } = new URL(origin)
  const socket = connect(Number(port), '127.0.0.1')
  socket.end(`GET ${path} HTTP/1.1\r\nhost: x\r\n\r\n`, () => socket.destroy())
  await expect.poll(() => lent.given).toBe(before + 3)
  expect(lent.taken.size).toBe(0)
})

test('the empty identity CID, by which gateways are probed, is answered', async () => {
  const probe = await get('/ipfs/bafkqaaa?format=raw')
  expect(probe.status).toBe(200)
  expect((await probe.arrayBuffer()).byteLength).toBe(0)
})

test.each([
  [
    '/ipfs/bafkreib5a2kq3lezv5uwac5t3ajcrfrpy346aqhlbcep7wem3tp6czppry?format=raw',
    404,
    /not on this node/,
  ],
  ['/ipfs/nonsense?format=raw', 400, /is not a CID/],
  [`/ipfs/bafkqaaa/a/b?format=raw`, 400, /as a CAR only/],
  ['/ipfs/bafkqaaa', 406, /trustless/],
  ['/ipfs/bafkqaaa?format=tar', 406, /trustless/],
  ['/ipfs/bafkqaaa?format=car&dag-scope=some', 400, /dag-scope must be/],
  ['/ipfs/bafkqaaa?format=car&entity-bytes=x', 400, /entity-bytes/],
])('%s is %i with a sentence', async (path, status, sentence) => {
  const response = await get(path)
  expect(response.status).toBe(status)
  expect(await response.text()).toMatch(sentence)
})

test('a CAR has the whole DAG, the block alone, or the blocks of a range', async () => {
  const at = `/ipfs/${root.toString()}?format=car`
  expect((await blocksOf(await get(at))).toSorted()).toEqual([...memory.blocks.keys()].toSorted())
  expect(await blocksOf(await get(`${at}&dag-scope=block`))).toEqual([root.toString()])
  const file = await UnixfsFile.open(root, memory, { priority: 'foreground', signal })
  const leaves = (...indices: number[]): string[] =>
    indices.map((index) => file.leafCid(index).toString())
  expect(await blocksOf(await get(`${at}&entity-bytes=39999:60000`))).toEqual([
    root.toString(),
    ...leaves(1, 2, 3),
  ])
  expect(await blocksOf(await get(`${at}&entity-bytes=-1:*`))).toEqual([
    root.toString(),
    ...leaves(29),
  ])
})

test('a CAR of a directory has the directory alone as entity, with all of its shards, or everything', async () => {
  const names = Object.fromEntries(
    Array.from({ length: 100 }, (_, n) => [`name ${n}`, Buffer.from(`content ${n}`)]),
  )
  const carOf = async (directory: CID, query: string): Promise<number> => {
    const response = await get(`/ipfs/${directory.toString()}?format=car${query}`)
    const car = await CarReader.fromBytes(new Uint8Array(await response.arrayBuffer()))
    let count = 0
    for await (const _ of car.blocks()) count++
    return count
  }
  const plain = await memory.addDirectory(names)
  expect(await carOf(plain, '&dag-scope=entity')).toBe(1)
  expect(await carOf(plain, '')).toBe(101)
  const before = memory.blocks.size
  const sharded = await memory.addDirectory(names, { shardSplitThresholdBytes: 100 })
  const shards = memory.blocks.size - before
  expect(shards).toBeGreaterThan(1)
  expect(await carOf(sharded, '&dag-scope=entity')).toBe(shards)
  expect(await carOf(sharded, '')).toBe(shards + 100)
})

test('a CAR of a path has the directories on the way, with the shards that were looked into, and what is at its end', async () => {
  const names = Object.fromEntries(
    Array.from({ length: 100 }, (_, n) => [`in/name ${n}`, Buffer.from(`content ${n}`)]),
  )
  const carOf = async (path: string, query = ''): Promise<string[]> => {
    const response = await get(`/ipfs/${path}?format=car${query}`)
    expect(response.status).toBe(200)
    expect(response.headers.get('x-ipfs-path')).toBe(`/ipfs/${path}`)
    const car = await CarReader.fromBytes(new Uint8Array(await response.arrayBuffer()))
    expect((await car.getRoots()).map(String)).toEqual([path.split('/')[0]])
    const cids: string[] = []
    for await (const { cid } of car.blocks()) cids.push(cid.toString())
    return cids
  }
  const file = cidOf(Buffer.from('content 7')).toString()
  for (const options of [{}, { shardSplitThresholdBytes: 100 }]) {
    const directory = (await memory.addDirectory(names, options)).toString()
    const way = await carOf(`${directory}/in/name%207`, '&dag-scope=entity')
    expect([way[0], way.at(-1)]).toEqual([directory, file])
    // Both directories, one of them with a shard or two where it is sharded, and the file.
    expect(way.length).toBeGreaterThanOrEqual(3)
    expect(way.length).toBeLessThan(8)
    expect(new Set(way).size).toBe(way.length)
    expect(await carOf(`${directory}/in/name%207`, '&dag-scope=block')).toEqual(way)
    expect((await carOf(`${directory}/in`)).length).toBeGreaterThan(100)
  }
})

test('a path whose directory the disk cannot read is no path that is not there', async () => {
  const directory = await memory.addDirectory({ 'in/broken': Buffer.from('content') })
  broken.add(directory.toString())
  const response = await get(`/ipfs/${directory.toString()}/in/broken?format=car`)
  expect(response.status).toBe(500)
  expect(await response.text()).toMatch(/EIO/)
})

test.each([
  ['a name that is not there', 'in/none'],
  ['what is above', '../in'],
  ['a name below a file', 'in/name/below'],
  ['an empty name', 'in//name'],
  ['more names than anybody follows', Array.from({ length: 33 }, () => 'in').join('/')],
])('a path of %s is 404 with a sentence', async (_, path) => {
  const directory = await memory.addDirectory({ 'in/name': Buffer.from('content') })
  // As it is: fetch would take out what leads up.
  const response = await rawGet(`/ipfs/${directory.toString()}/${path}?format=car`)
  expect(response).toMatch(/^HTTP\/1\.1 404 .*not on this node/s)
})

test('a CAR in which a block is missing is broken off, not ended', async () => {
  const file = await UnixfsFile.open(root, memory, { priority: 'foreground', signal })
  const name = file.leafCid(20).toString()
  const block = memory.blocks.get(name)
  if (block === undefined) throw new Error('the leaf is there')
  memory.blocks.delete(name)
  try {
    const response = await get(`/ipfs/${root.toString()}?format=car`)
    const failure = await failureOf(() => response.arrayBuffer())
    expect(failure.message).toMatch(/terminated/)
  } finally {
    memory.blocks.set(name, block)
  }
})
