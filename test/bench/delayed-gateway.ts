import { once } from 'node:events'
import { createServer, request } from 'node:http'
import type { AddressInfo } from 'node:net'
import { pipeline } from 'node:stream'

/** A gateway that is farther away: answers what another one does, `delayMs` later. On loopback alone a peer costs next to nothing. */
export class DelayedGateway implements AsyncDisposable {
  readonly url: string
  readonly #close: () => Promise<unknown>

  private constructor(url: string, close: () => Promise<unknown>) {
    this.url = url
    this.#close = close
  }

  static async start(gateway: string, delayMs: number): Promise<DelayedGateway> {
    const server = createServer((asked, answer) => {
      setTimeout(() => {
        const url = new URL(asked.url ?? '/', gateway)
        const passedOn = request(url, { method: asked.method, headers: asked.headers }, (found) => {
          answer.writeHead(found.statusCode ?? 502, found.headers)
          pipeline(found, answer, () => undefined)
        })
        passedOn.on('error', () => answer.destroy())
        answer.on('close', () => passedOn.destroy())
        passedOn.end()
      }, delayMs)
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    return new DelayedGateway(`http://127.0.0.1:${port}`, async () => {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close()
  }
}
