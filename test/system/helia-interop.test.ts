import { yamux } from '@chainsafe/libp2p-yamux'
import { unixfs } from '@helia/unixfs'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createHelia } from 'helia'
import { CID } from 'multiformats/cid'
import { expect, test } from 'vitest'
import { BlockSources } from '../../agent/ipfs/block-sources.ts'
import { HeliaNode } from '../../agent/ipfs/helia-node.ts'
import { PublisherNode } from '../../agent/ipfs/publisher-node.ts'
import { UnixfsFile } from '../../snapshotter/dag/unixfs-file.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'
import { silentLog } from '../support/silent-log.ts'

/** A time in which a block on loopback either comes or never will, in ms. */
const DEADLINE_MS = 30_000

/** Helia as anybody runs it, with its own bitswap, on loopback TCP and without the public network. */
async function heliaOnLoopback(): Promise<ReturnType<typeof createHelia> & AsyncDisposable> {
  const helia = createHelia({
    libp2p: {
      addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
      transports: [tcp()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      peerDiscovery: [],
    },
  })
  await helia.start()
  return Object.assign(helia, {
    [Symbol.asyncDispose]: async (): Promise<void> => void (await helia.stop()),
  })
}

function randomBytes(length: number): Uint8Array {
  const random = seeded(11)
  return Uint8Array.from({ length }, () => random(256))
}

test(
  'a plain Helia node reads by bitswap what a publisher node serves',
  async () => {
    await using scratch = Scratch.open('interop')
    await using publisher = await PublisherNode.open(
      {
        directory: `${scratch.dir}/repository`,
        listen: ['/ip4/127.0.0.1/tcp/0'],
        gateway: { host: '127.0.0.1', port: 0 },
      },
      { log: silentLog },
    )
    await using source = await heliaOnLoopback()
    const content = randomBytes(700_000)
    const cid = await unixfs(source).addBytes(content)
    for await (const { cid: block, bytes } of blocksOf(source, cid)) {
      await publisher.repository.put(block, bytes)
    }
    await using reader = await heliaOnLoopback()
    await reader.libp2p.dial(publisher.multiaddrs.map((address) => multiaddr(address)))
    const signal = AbortSignal.timeout(DEADLINE_MS)
    const pieces: Uint8Array[] = []
    for await (const piece of unixfs(reader).cat(cid, { signal })) pieces.push(piece)
    expect(Buffer.concat(pieces).equals(content)).toBe(true)
  },
  DEADLINE_MS,
)

test(
  'the agent reads by bitswap what a plain Helia node has',
  async () => {
    await using scratch = Scratch.open('interop')
    await using peer = await heliaOnLoopback()
    const content = randomBytes(700_000)
    const cid = await unixfs(peer).addBytes(content)
    await using node = await HeliaNode.start(
      {
        keyPath: `${scratch.dir}/key`,
        listen: [],
        peers: peer.libp2p.getMultiaddrs().map((address) => address.toString()),
      },
      { log: silentLog },
    )
    const blocks = new BlockSources(node.providers, { log: silentLog })
    const request = { priority: 'foreground', signal: AbortSignal.timeout(DEADLINE_MS) } as const
    const file = await UnixfsFile.open(CID.parse(cid.toString()), blocks, request)
    const read = await file.readRange({ start: 0, end: file.size }, request)
    expect(Buffer.compare(read, content)).toBe(0)
  },
  DEADLINE_MS,
)

/** Every block of a UnixFS file in Helia's own blockstore. */
async function* blocksOf(
  helia: Awaited<ReturnType<typeof heliaOnLoopback>>,
  root: CID,
): AsyncGenerator<{ cid: CID; bytes: Uint8Array }> {
  for await (const { cid, bytes } of helia.blockstore.getAll()) {
    const pieces: Uint8Array[] = []
    for await (const piece of bytes) pieces.push(piece)
    yield { cid, bytes: Buffer.concat(pieces) }
  }
  expect(await helia.blockstore.has(root)).toBe(true)
}
