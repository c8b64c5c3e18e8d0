import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import type { Libp2p } from '@libp2p/interface'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { createLibp2p } from 'libp2p'
import { expect, test } from 'vitest'
import { BitswapPeer } from '../../../agent/ipfs/bitswap-peer.ts'
import { startBitswap } from '../../../agent/ipfs/start-bitswap.ts'
import { failureOf } from '../../support/failure-of.ts'
import { cidOf } from '../../support/memory-blocks.ts'

const { signal } = new AbortController()
const BITSWAP = '/ipfs/bitswap/1.2.0'
const varint = (value: number): number[] =>
  value < 128 ? [value] : [(value & 127) | 128, ...varint(value >>> 7)]
const field = (number: number, bytes: Uint8Array): Uint8Array =>
  Buffer.concat([Buffer.of((number << 3) | 2, ...varint(bytes.length)), bytes])
/** Message { blocks(3): Block { prefix(1), data(2) } } of the bitswap 1.2 protobuf, with its length in front. */
const message = (prefix: readonly number[], data: Uint8Array): Uint8Array => {
  const body = field(3, Buffer.concat([field(1, Buffer.from(prefix)), field(2, data)]))
  return Buffer.concat([Buffer.from(varint(body.length)), body])
}
const node = (): Promise<Libp2p> =>
  createLibp2p({
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify() },
  })

const wanted = cidOf(Buffer.from('the block'))
test.each([
  ['another block', [1, 0x55, 0x12, 32], Buffer.from('another block')],
  // Whoever compares digests and not hash functions takes the digest itself for the block.
  ['the digest as an identity "hash"', [1, 0x55, 0x00, 32], wanted.multihash.digest],
  ['a hash cut to nothing', [1, 0x55, 0x12, 0], Buffer.from('x')],
  ['a prefix of rubbish', [0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Buffer.from('x')],
])(
  'a peer that sends %s: it is never taken for the block that was wanted',
  async (_, prefix, data) => {
    const [liar, reader] = [await node(), await node()]
    let sent = 0
    await liar.handle(BITSWAP, async (stream, connection) => {
      await stream.close()
      const reply = await liar.dialProtocol(connection.remotePeer, BITSWAP)
      reply.send(message(prefix, data))
      await reply.close()
      sent++
    })
    const bitswap = await startBitswap(reader, {
      has: () => false,
      get: () => [][Symbol.iterator]() as never,
    })
    try {
      await reader.peerStore.merge(liar.peerId, { multiaddrs: liar.getMultiaddrs() })
      const peer = new BitswapPeer(liar.peerId, { libp2p: reader, broker: bitswap.broker }, 500)
      const failure = await failureOf(() => peer.get(wanted, signal))
      expect(failure.code).toMatch(/^(UNAVAILABLE|DATA_LOSS)$/)
      expect(sent).toBeGreaterThan(0)
    } finally {
      await bitswap.stop()
      await reader.stop()
      await liar.stop()
    }
  },
)
