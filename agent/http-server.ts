import type { ServerOptions } from 'node:https'
import fastify, { type FastifyInstance, type FastifyPluginAsync } from 'fastify'
import type { ListenAddress } from './listen-address.ts'

/** How long an idle connection is kept, in ms. 75 s: longer than containerd's own 60 s between requests of one pull. */
const KEEP_ALIVE_MS = 75_000

/** An HTTP server for one set of routes. */
export class HttpServer implements AsyncDisposable {
  readonly #server: FastifyInstance
  /** Where it listens, as a URL, with the port that the kernel chose for port 0. */
  readonly address: string

  private constructor(server: FastifyInstance, address: string) {
    this.#server = server
    this.address = address
  }

  /** Over TLS where `tls` says how. Rejects if the address is in use. */
  static async listen(
    listen: ListenAddress,
    routes: FastifyPluginAsync,
    tls?: ServerOptions,
  ): Promise<HttpServer> {
    const server = fastify({
      logger: false,
      keepAliveTimeout: KEEP_ALIVE_MS,
      forceCloseConnections: 'idle',
      exposeHeadRoutes: false,
      ...(tls && { https: tls }),
    })
    await server.register(routes)
    const address = await server.listen(listen)
    return new HttpServer(server, address)
  }

  /** Takes no more connections, and ends when the requests under way have. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.close()
  }
}
