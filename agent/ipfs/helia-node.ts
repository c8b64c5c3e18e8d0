import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { KEEP_ALIVE, type Libp2p, type PeerId } from '@libp2p/interface'
import { noise } from '@libp2p/noise'
import { peerIdFromString } from '@libp2p/peer-id'
import { tcp } from '@libp2p/tcp'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CodedError } from '../../snapshotter/errors.ts'
import type { Log } from '../../snapshotter/log.ts'
import { BitswapPeer } from './bitswap-peer.ts'
import type { BlockProvider } from './block-provider.ts'
import { readOrCreateNodeKey } from './node-key.ts'
import { type RunningBitswap, type ServedBlocks, startBitswap } from './start-bitswap.ts'

/** Connections at once. 64: a cluster's agents and a few publishers; each may hold 16 MiB of blocks being sent. */
const CONNECTIONS_MAX = 64

/** Hand-shakes of strangers at once, and new ones a second from one address. */
const PENDING_CONNECTIONS_MAX = 16
const CONNECTIONS_PER_SECOND_MAX = 32

/** Dialling one peer, in ms: three lost packets of TCP's hand-shake, and noise's. */
const DIAL_MS = 5_000

/** Bytes in flight on one stream: 1 MiB fills 100 Mbit/s at 80 ms. */
const STREAM_WINDOW_BYTES_MAX = 1024 * 1024

export type HeliaNodeConfig = {
  /** Where the private key is kept. */
  readonly keyPath: string
  /** Multiaddrs to listen on; none: the node only dials. */
  readonly listen: readonly string[]
  /** Multiaddrs with `/p2p/<peer ID>`, kept connected and asked for blocks. */
  readonly peers: readonly string[]
}

/** This node on libp2p: TCP, noise, yamux, identify and Helia's bitswap, and nothing else, for the sake of memory. */
export class HeliaNode implements AsyncDisposable {
  readonly libp2p: Libp2p
  /** The configured peers, to be asked for blocks. */
  readonly providers: readonly BlockProvider[]
  readonly #bitswap: RunningBitswap

  private constructor(libp2p: Libp2p, bitswap: RunningBitswap, peers: readonly PeerId[]) {
    this.libp2p = libp2p
    this.#bitswap = bitswap
    this.providers = peers.map((peer) => new BitswapPeer(peer, { libp2p, broker: bitswap.broker }))
  }

  /**
   * Starts listening and begins to dial the peers, without waiting for them. `blocks` is what other peers may have from this node.
   * Rejects with CodedError INVALID_ARGUMENT for an address that cannot be read, FAILED_PRECONDITION for the key.
   */
  static async start(
    { keyPath, listen, peers }: HeliaNodeConfig,
    { log, blocks = NO_BLOCKS }: { log: Log; blocks?: ServedBlocks },
  ): Promise<HeliaNode> {
    const addresses = peers.map(parsePeer)
    const privateKey = await readOrCreateNodeKey(keyPath)
    const libp2p = await createLibp2p({
      privateKey,
      addresses: { listen: listen.map((address) => parseMultiaddr(address).toString()) },
      transports: [tcp()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux({ streamOptions: { maxStreamWindowSize: STREAM_WINDOW_BYTES_MAX } })],
      connectionManager: {
        maxConnections: CONNECTIONS_MAX,
        maxIncomingPendingConnections: PENDING_CONNECTIONS_MAX,
        inboundConnectionThreshold: CONNECTIONS_PER_SECOND_MAX,
        dialTimeout: DIAL_MS,
      },
      services: { identify: identify() },
    })
    await using opened = new AsyncDisposableStack()
    opened.defer(() => libp2p.stop())
    const bitswap = await startBitswap(libp2p, blocks)
    opened.defer(() => bitswap.stop())
    const peerIds = [...new Map(addresses.map(({ id }) => [id.toString(), id])).values()]
    for (const id of peerIds) {
      const multiaddrs = addresses
        .filter((address) => address.id.equals(id))
        .map(({ multiaddr }) => multiaddr)
      // The tag makes libp2p dial again, with growing pauses, whenever the connection is lost.
      await libp2p.peerStore.merge(id, { multiaddrs, tags: { [KEEP_ALIVE]: { value: 100 } } })
      libp2p.dial(id).catch((error: unknown) => {
        const reason = error instanceof Error ? error.message : String(error)
        log.warn({ peer: id.toString(), reason }, 'a peer cannot be reached yet')
      })
    }
    opened.move()
    return new HeliaNode(libp2p, bitswap, peerIds)
  }

  get peerId(): string {
    return this.libp2p.peerId.toString()
  }

  /** Addresses that others can dial, with `/p2p/<peer ID>`. */
  get multiaddrs(): string[] {
    return this.libp2p.getMultiaddrs().map((address) => address.toString())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#bitswap.stop()
    await this.libp2p.stop()
  }
}

const NO_BLOCKS: ServedBlocks = {
  has: () => false,
  get(cid) {
    throw new CodedError('NOT_FOUND', `block ${cid.toString()} is not served here`)
  },
}

function parsePeer(text: string): { id: PeerId; multiaddr: Multiaddr } {
  const address = parseMultiaddr(text)
  const id = /\/p2p\/([^/]+)$/.exec(text)?.[1]
  try {
    if (id !== undefined) return { id: peerIdFromString(id), multiaddr: address }
  } catch {
    // Said below, as when it is missing.
  }
  throw new CodedError(
    'INVALID_ARGUMENT',
    `peer ${text} must end with /p2p/ and the peer's ID, as ipdr serve prints it`,
    { peer: text },
  )
}

function parseMultiaddr(text: string): Multiaddr {
  try {
    return multiaddr(text)
  } catch (cause) {
    throw new CodedError(
      'INVALID_ARGUMENT',
      `${text} is not a multiaddr like /ip4/10.0.0.7/tcp/4001`,
      { multiaddr: text },
      cause,
    )
  }
}
