import { once } from 'node:events'
import { createServer, request } from 'node:http'
import type { AddressInfo } from 'node:net'
import { pipeline, Transform } from 'node:stream'

/** A gateway that answers what another one does, and counts what leaves it. */
export class CountingGateway implements AsyncDisposable {
  readonly url: string
  /** Bytes of bodies sent, also of those that were broken off. */
  bytes = 0
  /** Told of it each time. */
  onBytes: (bytes: number) => void = () => undefined
  /** Blocks that were sent whole once, and their lengths. */
  readonly #sent = new Map<string, number>()
  readonly #close: () => Promise<unknown>

  private constructor(url: string, close: () => Promise<unknown>) {
    this.url = url
    this.#close = close
  }

  static async start(gateway: string): Promise<CountingGateway> {
    const server = createServer((asked, answer) => {
      const path = asked.url ?? '/'
      const passedOn = request(new URL(path, gateway), { headers: asked.headers }, (found) => {
        answer.writeHead(found.statusCode ?? 502, found.headers)
        let bytes = 0
        const count = new Transform({
          transform(chunk: Buffer, _encoding, done) {
            bytes += chunk.length
            counting.bytes += chunk.length
            counting.onBytes(counting.bytes)
            done(null, chunk)
          },
        })
        pipeline(found, count, answer, (error) => {
          if (!error && found.statusCode === 200) counting.#sent.set(path, bytes)
        })
      })
      passedOn.on('error', () => answer.destroy())
      answer.on('close', () => passedOn.destroy())
      passedOn.end()
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const counting = new CountingGateway(`http://127.0.0.1:${port}`, async () => {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    })
    return counting
  }

  /** The same if nothing had been asked for twice. */
  get neededBytes(): number {
    return [...this.#sent.values()].reduce((sum, bytes) => sum + bytes, 0)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close()
  }
}
