import { type BitswapOptions, withBitswap } from '@helia/bitswap'
import type { BlockBroker, Routing } from '@helia/interface'
import { type Libp2p, stop } from '@libp2p/interface'
import type { Blockstore } from 'interface-blockstore'
import { from } from 'multiformats/hashes/hasher'
import { BlockError, CodedError } from '../../snapshotter/errors.ts'
import { blockDigest } from '../../snapshotter/oci/verify-block.ts'
import { BLOCK_BYTES_MAX } from './block-provider.ts'

/** The blocks that peers may have from us. */
export type ServedBlocks = Pick<Blockstore, 'has' | 'get'>

/** Streams of one peer at once, each way: a message is a stream, and a busy peer has a few dozen on their way. */
const STREAMS_MAX = 256

/** One message: a block of the largest size, and its envelope. */
const MESSAGE_BYTES_MAX = BLOCK_BYTES_MAX + 64 * 1024

/**
 * Wants of one peer that are remembered. All of them are read into memory before the first is sent: with blocks of 256 KiB, 64 are
 * 16 MiB a peer. Kubo has up to 64 on their way in a session; the oldest are dropped, and asked for again.
 */
const WANTS_MAX = 64

/** Messages on their way at once, to all peers: 16 of 2 MiB are 32 MiB. */
const MESSAGES_MAX = 16

export type RunningBitswap = {
  readonly broker: Required<Pick<BlockBroker, 'createSession'>> & BlockBroker
  stop(): Promise<void>
}

type Host = Parameters<typeof withBitswap>[0]
type Mixin = Parameters<Host['addMixin']>[0]

/**
 * Helia's bitswap on our libp2p. Helia itself is left out: importing it brings webrtc, DHT, delegated routing and the rest, 63 MB
 * of resident memory more (157 against 94, measured). What the bitswap mixin uses of a Helia node is stood in for here.
 */
export async function startBitswap(libp2p: Libp2p, blocks: ServedBlocks): Promise<RunningBitswap> {
  const options: BitswapOptions & { maxWantListSize: number } = {
    maxInboundStreams: STREAMS_MAX,
    maxOutboundStreams: STREAMS_MAX,
    maxIncomingMessageSize: MESSAGE_BYTES_MAX,
    maxOutgoingMessageSize: MESSAGE_BYTES_MAX,
    messageSendConcurrency: MESSAGES_MAX,
    // The type says maxWantlistSize, the code of 4.0.19 reads the other spelling.
    maxWantlistSize: WANTS_MAX,
    maxWantListSize: WANTS_MAX,
    // A peer that lost what it was sent may have it again at once.
    doNotResendBlockWindow: 0,
    sendWantlistDebounce: 0,
  }
  const mixins: Mixin[] = []
  const brokers: BlockBroker[] = []
  const host: Pick<
    Host,
    'status' | 'logger' | 'libp2p' | 'getHasher' | 'hasBlockBroker' | 'addBlockBroker' | 'addMixin'
  > & { blockstore: ServedBlocks; routing: Pick<Routing, 'findProviders'> } = {
    status: 'starting',
    logger: libp2p.logger,
    libp2p,
    blockstore: blocks,
    // Peers are those of the config.
    routing: { async *findProviders() {} },
    getHasher: (code) => hasherOf(code),
    hasBlockBroker: () => false,
    addBlockBroker: (broker) => {
      if (typeof broker !== 'function') brokers.push(broker)
    },
    addMixin: (mixin) => mixins.push(mixin),
  }
  const helia = host as unknown as Host
  withBitswap(helia, options)
  for (const mixin of mixins) await mixin.start?.(helia)
  const [broker] = brokers
  if (broker?.createSession === undefined) {
    throw new CodedError('INTERNAL', 'the bitswap package did not register a block broker')
  }
  const createSession = broker.createSession.bind(broker)
  return { broker: Object.assign(broker, { createSession }), stop: () => stop(broker) }
}

function hasherOf(code: number): ReturnType<typeof from> {
  return from({
    name: `multihash-0x${code.toString(16)}`,
    code,
    encode: (bytes: Uint8Array) => {
      // Identity is no hash: with it a peer could pass the 32 bytes of a digest off as the block they name.
      const digest = blockDigest(code, 32, bytes)
      if (digest !== undefined) return Uint8Array.from(digest)
      throw new BlockError(
        'UNIMPLEMENTED',
        `multihash 0x${code.toString(16)} cannot be checked here`,
      )
    },
  })
}
