import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { fastify } from 'fastify'
import type { Log } from '../../snapshotter/log.ts'
import { ReusedMemory } from '../../snapshotter/reused-memory.ts'
import { gatewayService } from './gateway-service.ts'
import { HeliaNode } from './helia-node.ts'
import { BlockRepository } from './repository.ts'

export type PublisherConfig = {
  /** Blocks, roots and the node's key are kept here. */
  readonly directory: string
  /** Multiaddrs for bitswap, like /ip4/0.0.0.0/tcp/4001. */
  readonly listen: readonly string[]
  /** Where the HTTP gateway listens. Port 0 lets the kernel choose. */
  readonly gateway: { readonly host: string; readonly port: number }
}

/** What `ipdr serve` runs: a repository on disk, offered to others over bitswap and as a trustless HTTP gateway. */
export class PublisherNode implements AsyncDisposable {
  readonly repository: BlockRepository
  /** Where the gateway listens: what others put in `ipfs.gateways`, unless it is a wildcard address. */
  readonly gatewayUrl: string
  readonly #node: HeliaNode
  readonly #opened: AsyncDisposableStack

  private constructor(
    repository: BlockRepository,
    node: HeliaNode,
    gatewayUrl: string,
    opened: AsyncDisposableStack,
  ) {
    this.repository = repository
    this.#node = node
    this.gatewayUrl = gatewayUrl
    this.#opened = opened
  }

  /** Opens the repository and both servers. Rejects if an address is in use or the repository cannot be opened. */
  static async open(
    { directory, listen, gateway }: PublisherConfig,
    { log }: { log: Log },
  ): Promise<PublisherNode> {
    await using opened = new AsyncDisposableStack()
    const repository = opened.use(await BlockRepository.open(directory))
    const keyPath = join(directory, 'node-key')
    const config = { keyPath, listen, peers: [] }
    const node = opened.use(await HeliaNode.start(config, { log, blocks: repository.served }))
    const server = fastify({ forceCloseConnections: true })
    opened.defer(() => server.close())
    const memory = opened.use(new ReusedMemory())
    await server.register(gatewayService({ blocks: repository, memory, log }))
    await server.listen({ host: gateway.host, port: gateway.port })
    const { address, family, port } = server.server.address() as AddressInfo
    const host = family === 'IPv6' ? `[${address}]` : address
    return new PublisherNode(repository, node, `http://${host}:${port}`, opened.move())
  }

  get peerId(): string {
    return this.#node.peerId
  }

  /** What others put in `ipfs.peers`. */
  get multiaddrs(): string[] {
    return this.#node.multiaddrs
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}
