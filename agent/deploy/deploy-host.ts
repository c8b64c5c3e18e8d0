import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { dcutr } from '@libp2p/dcutr'
import { identify, identifyPush } from '@libp2p/identify'
import type { Libp2p, PrivateKey } from '@libp2p/interface'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CodedError } from '../../snapshotter/errors.ts'

/** Hand-shakes of strangers at once, and new connections a second from one address. 64: a page of a publisher opens two or three. */
const PENDING_CONNECTIONS_MAX = 64
const CONNECTIONS_PER_SECOND_MAX = 64

/** Bytes in flight on one stream. 256 KiB: a log at 25 Mbit/s and 80 ms; a thousand streams come to no more than 256 MiB. */
const STREAM_WINDOW_BYTES_MAX = 256 * 1024

/** Streams that a client opens before we know of its connection; one more, and the connection is cut. As many as it may have. */
const EARLY_STREAMS_MAX = 64

type Options = NonNullable<Parameters<typeof createLibp2p>[0]>

export type DeployHostConfig = {
  /** Multiaddrs: TCP, WebSockets (`/ws`), and `/webrtc-direct` for browsers. `<relay>/p2p-circuit` has a relay pass connections on. */
  readonly listen: readonly string[]
  /** What others are told to dial in place of the above, where a router or load balancer stands before us. */
  readonly announce: readonly string[]
  readonly connectionsMax: number
  /** Addresses and networks, as `/ip4/203.0.113.0/ipcidr/24`, from which no connection is taken. */
  readonly denied: readonly string[]
}

/**
 * The libp2p host that publishers dial. Its peer ID is that of `privateKey`. A host behind NAT is reached through relays, and directly once a hole is
 * punched. Rejects with CodedError INVALID_ARGUMENT for an address that cannot be read or listened on.
 */
export async function startDeployHost(
  { listen, announce, connectionsMax, denied }: DeployHostConfig,
  privateKey: PrivateKey,
): Promise<Libp2p> {
  for (const address of [...listen, ...announce, ...denied]) parse(address)
  const transports: NonNullable<Options['transports']> = [
    tcp(),
    webSockets(),
    circuitRelayTransport(),
  ]
  if (listen.some((address) => address.includes('/webrtc-direct'))) {
    // Machine code, and 20 MiB of memory, for those who ask for it.
    const { webRTCDirect } = await import('@libp2p/webrtc')
    transports.push(webRTCDirect())
  }
  try {
    return await createLibp2p({
      privateKey,
      addresses: { listen: [...listen], ...(announce.length > 0 && { announce: [...announce] }) },
      transports,
      connectionEncrypters: [noise()],
      streamMuxers: [
        yamux({
          streamOptions: { maxStreamWindowSize: STREAM_WINDOW_BYTES_MAX },
          maxEarlyStreams: EARLY_STREAMS_MAX,
        }),
      ],
      connectionManager: {
        maxConnections: connectionsMax,
        maxIncomingPendingConnections: PENDING_CONNECTIONS_MAX,
        inboundConnectionThreshold: CONNECTIONS_PER_SECOND_MAX,
        deny: [...denied],
      },
      // By default all connections are asked at the same moment, every 10 s, and one that does not answer within 5 s is cut: with a thousand of
      // them on a busy machine that cut all (test/bench/README.md).
      connectionMonitor: { pingInterval: 60_000, pingTimeout: { minTimeout: 30_000 } },
      services: {
        identify: identify(),
        identifyPush: identifyPush(),
        ping: ping(),
        dcutr: dcutr(),
      },
    })
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new CodedError(
      'INVALID_ARGUMENT',
      `deploy.listen: cannot listen on ${listen.join(', ')}: ${reason}`,
      { listen: listen.join(', ') },
      cause,
    )
  }
}

function parse(address: string): void {
  try {
    multiaddr(address)
  } catch (cause) {
    throw new CodedError(
      'INVALID_ARGUMENT',
      `deploy: ${address} is not a multiaddr like /ip4/0.0.0.0/tcp/4002 or /ip4/0.0.0.0/tcp/4003/ws`,
      { multiaddr: address },
      cause,
    )
  }
}
