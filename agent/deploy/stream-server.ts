import { createServer, type RequestListener, type Server } from 'node:http'
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import { StreamSocket } from './stream-socket.ts'

/** Bytes of a request's headers. 16 KiB: a token of 1 KiB, and what clients add. */
const HEADER_BYTES_MAX = 16 * 1024

/** A stream without a request, or with one whose headers do not end, in ms. 10 s: three round trips of a bad line, and their losses. */
const HEADERS_MS_MAX = 10_000

/** A whole request, in ms. 60 s: 8 MiB at 1 Mbit/s. */
const REQUEST_MS_MAX = 60_000

/** A stream between two requests, in ms; what the existing Go client keeps open is closed by it after 90 s. */
const KEEP_ALIVE_MS = 30_000

/** How often streams are looked at for these, in ms. */
const CHECK_MS = 1_000

/** Streams of one connection at once. 64: a client follows logs of a few containers, and asks now and then. */
const STREAMS_OF_CONNECTION_MAX = 64

/** Streams of one server at once, of all peers. 4,096 of some 30 KiB each are 120 MiB. */
const STREAMS_MAX = 4_096

/** Bytes of a request that nobody has read yet; a peer that sends more before it is asked to is cut off. */
const UNREAD_BYTES_MAX = 1024 * 1024

type Options = {
  /** In order of preference. */
  readonly protocols: readonly string[]
  /**
   * Takes what existing clients send: `HTTP/1.2` in the request line. What else Node then lets pass could only deceive whoever stands
   * between a client and us, and on a stream from peer to peer there is nobody. Kubo, through which these clients come, ends a stream in both
   * directions at once: what it ends is wanted by nobody any more.
   */
  readonly isOfOldClients?: boolean
  /** Whether one more request of this host, an address of IP, is taken. */
  readonly takes?: (host: string) => boolean
}

/** HTTP/1.1 on libp2p streams: each stream is a connection of Node's own server. */
export class StreamServer implements AsyncDisposable {
  readonly #libp2p: Pick<Libp2p, 'unhandle'>
  readonly #protocols: readonly string[]
  readonly #endsWithPeer: boolean
  readonly #server: Server
  readonly #streams = new Set<Stream>()

  private constructor(
    libp2p: Pick<Libp2p, 'unhandle'>,
    { protocols, isOfOldClients = false }: Options,
    server: Server,
  ) {
    this.#libp2p = libp2p
    this.#protocols = protocols
    this.#endsWithPeer = isOfOldClients
    this.#server = server
  }

  /** Answers requests on streams of these protocols from now on. `answer` finds the peer ID in `request.socket.remoteAddress`. */
  static async listen(
    { protocols, isOfOldClients = false, takes = () => true }: Options,
    answer: RequestListener,
    { libp2p }: { readonly libp2p: Pick<Libp2p, 'handle' | 'unhandle'> },
  ): Promise<StreamServer> {
    const server = createServer(
      {
        insecureHTTPParser: isOfOldClients,
        maxHeaderSize: HEADER_BYTES_MAX,
        headersTimeout: HEADERS_MS_MAX,
        requestTimeout: REQUEST_MS_MAX,
        keepAliveTimeout: KEEP_ALIVE_MS,
        connectionsCheckingInterval: CHECK_MS,
      },
      (request, response) => {
        const { remoteHost } = request.socket as unknown as StreamSocket
        if (takes(remoteHost)) return answer(request, response)
        // Connect's clients know it as a failure that may be tried again.
        response.writeHead(429, { 'retry-after': '1', 'content-length': '0' }).end()
      },
    )
    // Ours close their writing end once the request is sent.
    Object.assign(server, { httpAllowHalfOpen: !isOfOldClients })
    // It listens on no port, but looks after time limits only once it is told that it does.
    server.emit('listening')
    const streams = new StreamServer(libp2p, { protocols, isOfOldClients }, server)
    for (const protocol of protocols) {
      await libp2p.handle(protocol, (stream, connection) => streams.#take(stream, connection), {
        maxInboundStreams: STREAMS_OF_CONNECTION_MAX,
        runOnLimitedConnection: true,
      })
    }
    return streams
  }

  /** Streams that are open. */
  get streams(): number {
    return this.#streams.size
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const protocol of this.#protocols) await this.#libp2p.unhandle(protocol)
    for (const stream of this.#streams) stream.abort(new Error('the agent is stopping'))
    this.#server.close()
  }

  #take(stream: Stream, { remotePeer, remoteAddr }: Connection): void {
    if (this.#streams.size >= STREAMS_MAX) {
      stream.abort(new Error(`${STREAMS_MAX} streams are open already`))
      return
    }
    stream.maxReadBufferLength = UNREAD_BYTES_MAX
    this.#streams.add(stream)
    stream.addEventListener('close', () => this.#streams.delete(stream), { once: true })
    const socket = new StreamSocket(stream, {
      peer: remotePeer.toString(),
      // Those that come through a relay share its address.
      host: /^\/ip[46]\/([^/]+)/.exec(remoteAddr.toString())?.[1] ?? '',
    })
    // A peer that goes away is no error of ours; the request that it waited for learns of it by its own signal.
    socket.on('error', () => undefined)
    if (this.#endsWithPeer)
      socket.once('end', () => socket.destroy(new Error('the client has gone')))
    this.#server.emit('connection', socket)
  }
}
