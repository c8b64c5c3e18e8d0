import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'

/** Serves an empty page with a script. On loopback, which browsers trust as they do HTTPS: a page has crypto.subtle there. */
export class PageServer implements AsyncDisposable {
  readonly url: string
  readonly #server: Server

  private constructor(server: Server) {
    const { port } = server.address() as AddressInfo
    this.url = `http://127.0.0.1:${port}/`
    this.#server = server
  }

  static async start(script: string): Promise<PageServer> {
    const server = createServer((request, response) => {
      const isScript = request.url === '/page.js'
      response.setHeader('content-type', isScript ? 'text/javascript' : 'text/html')
      response.end(
        isScript ? script : '<!doctype html><script type="module" src="/page.js"></script>',
      )
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return new PageServer(server)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    await this.#server[Symbol.asyncDispose]()
  }
}
