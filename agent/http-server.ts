import type { ServerOptions } from 'node:https'
import fastify, { type FastifyInstance, type FastifyPluginAsync } from 'fastify'
import type { ListenAddress } from './listen-address.ts'

/** How long an idle connection is kept, in ms. 75 s: longer than containerd's own 60 s between requests of one pull. */
const KEEP_ALIVE_MS = 75_000

/** What clients may take of a server that anybody may call; else what Node and fastify give. */
export type HttpLimits = {
  /** Of all headers of a request. */
  readonly headerBytesMax: number
  /** From a connection's first byte to its request's last one. */
  readonly requestMsMax: number
  readonly connectionsMax: number
}

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
    { tls, limits }: { readonly tls?: ServerOptions; readonly limits?: HttpLimits } = {},
  ): Promise<HttpServer> {
    const server = fastify({
      logger: false,
      keepAliveTimeout: KEEP_ALIVE_MS,
      forceCloseConnections: 'idle',
      exposeHeadRoutes: false,
      ...(limits && { requestTimeout: limits.requestMsMax }),
      ...(tls && { https: { ...tls, ...nodeLimits(limits) } }),
      ...(!tls && limits && { http: nodeLimits(limits) }),
    })
    if (limits) server.server.maxConnections = limits.connectionsMax
    await server.register(routes)
    const address = await server.listen(listen)
    return new HttpServer(server, address)
  }

  /** Takes no more connections, and ends when the requests under way have. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.close()
  }
}

function nodeLimits(limits: HttpLimits | undefined): ServerOptions {
  if (limits === undefined) return {}
  const { headerBytesMax: maxHeaderSize, requestMsMax } = limits
  // Else it looks for late requests every 30 s only.
  return { maxHeaderSize, connectionsCheckingInterval: requestMsMax / 2 }
}
