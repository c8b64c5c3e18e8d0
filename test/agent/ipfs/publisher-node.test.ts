import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { BlockSources } from '../../../agent/ipfs/block-sources.ts'
import { GatewayClient } from '../../../agent/ipfs/gateway-client.ts'
import { HeliaNode } from '../../../agent/ipfs/helia-node.ts'
import { PublisherNode } from '../../../agent/ipfs/publisher-node.ts'
import { UnixfsFile } from '../../../snapshotter/dag/unixfs-file.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf, MemoryBlocks } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'

const log = { debug() {}, info() {}, warn() {}, error() {} }
const { signal } = new AbortController()
const LOOPBACK = ['/ip4/127.0.0.1/tcp/0']
const random = seeded(11)
const content = Uint8Array.from({ length: 600_000 }, () => random(256))
const memory = new MemoryBlocks()
let work = ''
let root: CID
let publisher: PublisherNode

beforeAll(async () => {
  work = await mkdtemp(join(tmpdir(), 'publisher-'))
  root = await memory.addFile(content, { chunker: fixedSize({ chunkSize: 20_000 }) })
  publisher = await openPublisher('publisher')
  for (const [cid, block] of memory.blocks) await publisher.repository.put(CID.parse(cid), block)
  await publisher.repository.addRoot(root, 'file')
})
afterAll(async () => {
  await publisher[Symbol.asyncDispose]()
  await rm(work, { recursive: true })
})

function openPublisher(name: string): Promise<PublisherNode> {
  const gateway = { host: '127.0.0.1', port: 0 }
  return PublisherNode.open({ directory: join(work, name), listen: LOOPBACK, gateway }, { log })
}
function startNode(name: string, peers: readonly string[]): Promise<HeliaNode> {
  return HeliaNode.start({ keyPath: join(work, name, 'node-key'), listen: [], peers }, { log })
}

describe('bitswap over libp2p on loopback (TCP, noise, yamux)', () => {
  test('a file of thirty blocks arrives from a configured peer', async () => {
    await using node = await startNode('reader', publisher.multiaddrs)
    const sources = new BlockSources(node.providers, { log })
    const file = await UnixfsFile.open(root, sources, { priority: 'foreground', signal })
    const got = await file.readRange(
      { start: 0, end: file.size },
      { priority: 'foreground', signal },
    )
    expect(Buffer.compare(got, content)).toBe(0)
  })

  test('a block that the peer does not have is told at once, without waiting for a deadline', async () => {
    await using node = await startNode('reader', publisher.multiaddrs)
    const sources = new BlockSources(node.providers, { log })
    const missing = cidOf(Buffer.from('nobody has this'))
    const failure = await failureOf(() => sources.get(missing, { priority: 'foreground', signal }))
    expect(failure.code).toBe('NOT_FOUND')
    expect(failure.message).toContain(`peer ${publisher.peerId} does not have it`)
  })

  test('a peer that is gone cannot be reached, and a block that is had is still told from one that is not', async () => {
    const leaving = await openPublisher('leaving')
    const addresses = leaving.multiaddrs
    await leaving[Symbol.asyncDispose]()
    await using node = await startNode('reader', [...addresses, ...publisher.multiaddrs])
    const sources = new BlockSources(node.providers, { log })
    const request = { priority: 'background', signal } as const
    expect(await sources.get(root, request)).toBeInstanceOf(Uint8Array)
    const missing = cidOf(Buffer.from('nobody has this'))
    const failure = await failureOf(() => sources.get(missing, request))
    expect(failure.code).toBe('UNAVAILABLE')
    expect(failure.message).toContain('cannot be reached')
    expect(failure.message).toContain('does not have it')
  })

  test('a get that is cancelled ends', async () => {
    await using node = await startNode('reader', publisher.multiaddrs)
    const stop = new AbortController()
    const [provider] = node.providers
    const get = failureOf(() => provider?.get(cidOf(Buffer.from('x')), stop.signal))
    stop.abort()
    expect((await get).code).toBe('CANCELLED')
  })

  test('a block over gateway and bitswap at once is taken from the gateway', async () => {
    await using node = await startNode('reader', publisher.multiaddrs)
    await using gateway = new GatewayClient(publisher.gatewayUrl)
    const kinds: string[] = []
    const sources = new BlockSources([...node.providers, gateway], {
      log,
      onBytes: (kind) => kinds.push(kind),
    })
    await sources.get(root, { priority: 'foreground', signal })
    expect(kinds).toEqual(['gateway'])
  })

  test.each([
    ['/ip4/127.0.0.1/tcp/4001', /must end with \/p2p\/ and the peer's ID/],
    ['/ip4/127.0.0.1/tcp/4001/p2p/nonsense', /multiaddr|must end with/],
    ['127.0.0.1:4001', /is not a multiaddr like/],
  ])('a peer written %s is refused with how to write it', async (peer, reason) => {
    const failure = await failureOf(() => startNode('reader', [peer]))
    expect(failure.code).toBe('INVALID_ARGUMENT')
    expect(failure.message).toMatch(reason)
  })
})

test('a publisher is the same peer after a restart', async () => {
  const first = await openPublisher('kept')
  const { peerId } = first
  await first[Symbol.asyncDispose]()
  await using second = await openPublisher('kept')
  expect(second.peerId).toBe(peerId)
})
