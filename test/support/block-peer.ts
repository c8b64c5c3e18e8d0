import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

/** What a peer does instead of serving a block. */
export type Misbehaviour = (request: IncomingMessage, response: ServerResponse) => void

/** A trustless HTTP gateway on loopback that serves blocks from a map, or behaves as badly as it is told to. */
export class BlockPeer implements AsyncDisposable {
  readonly url: string
  /** CIDs asked for, in order. */
  readonly asked: string[] = []
  /** Connections ever opened. */
  connections = 0
  /** Set to misbehave; undefined to serve. */
  misbehaviour: Misbehaviour | undefined
  readonly #server: Server

  private constructor(server: Server) {
    this.#server = server
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  }

  static async serve(
    blocks: ReadonlyMap<string, Uint8Array>,
    misbehaviour?: Misbehaviour,
  ): Promise<BlockPeer> {
    const server = createServer({ keepAlive: true })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const peer = new BlockPeer(server)
    peer.misbehaviour = misbehaviour
    server.on('connection', () => peer.connections++)
    server.on('request', (request, response) => {
      const cid = /^\/ipfs\/([a-z0-9]+)\?format=raw$/.exec(request.url ?? '')?.[1] ?? ''
      peer.asked.push(cid)
      if (peer.misbehaviour !== undefined) {
        peer.misbehaviour(request, response)
        return
      }
      const block = blocks.get(cid)
      if (block === undefined) response.writeHead(404).end('not here')
      else response.writeHead(200, { 'content-length': block.length }).end(block)
    })
    return peer
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, 'close')
  }
}
