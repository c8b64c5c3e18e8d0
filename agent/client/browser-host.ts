import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { identify } from '@libp2p/identify'
import { type DialTarget, isPeerId, type Libp2p } from '@libp2p/interface'
import { noise } from '@libp2p/noise'
import { isPrivate } from '@libp2p/utils'
import { webRTCDirect } from '@libp2p/webrtc'
import { webSockets } from '@libp2p/websockets'
import type { Multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

/** A libp2p host that only dials, for a page: by WebSockets, WebRTC-direct, and relays. Its peer ID is made for it, and means nothing. */
export async function startBrowserHost(): Promise<Libp2p> {
  const asked = new AskedAddresses()
  const libp2p = await createLibp2p({
    addresses: { listen: [] },
    transports: [webSockets(), webRTCDirect(), circuitRelayTransport()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    // libp2p's own gater for browsers refuses private addresses and WebSockets without TLS, whoever names them. An agent may well stand in
    // its publisher's own network, and Noise encrypts on either. But a name (`/dnsaddr`) or a peer that tells of its other addresses must
    // not make a page knock on what only its user can reach.
    connectionGater: {
      denyDialMultiaddr: (address) => isPrivate(address) && !asked.include(address),
    },
    services: { identify: identify() },
  })
  const dial = libp2p.dial.bind(libp2p)
  const dialProtocol = libp2p.dialProtocol.bind(libp2p)
  libp2p.dial = async (target, options) => {
    asked.add(target)
    return await dial(target, options).catch(rethrow)
  }
  libp2p.dialProtocol = async (target, protocols, options) => {
    asked.add(target)
    return await dialProtocol(target, protocols, options).catch(rethrow)
  }
  return libp2p
}

/** What the page itself has dialled. */
class AskedAddresses {
  readonly #addresses = new Set<string>()

  add(target: DialTarget): void {
    if (isPeerId(target)) return
    for (const address of [target].flat()) this.#addresses.add(address.toString())
  }

  /** Also for a relay, with which the address of an agent behind it begins. */
  include(address: Multiaddr): boolean {
    const start = address.toString()
    return [...this.#addresses].some((asked) => asked === start || asked.startsWith(`${start}/`))
  }
}

/** Sockets of browsers fail with an Event that says nothing, so that pages do not learn what there is in a network. */
function rethrow(cause: unknown): never {
  throw cause instanceof Error ? cause : new Error('the browser does not say why', { cause })
}
