import { once } from 'node:events'
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

/** How a peer behaves. */
export const BEHAVIOURS = [
  'is honest',
  'stalls',
  'closes early',
  'sends garbage',
  'sends another block',
  'refuses',
] as const
export type Behaviour = (typeof BEHAVIOURS)[number]

/** Blocks that it remembers, to send one in the place of another. */
const REMEMBERED_MAX = 16

/** A gateway that answers what another one does, until it is told to behave in another way. */
export class FaultyGateway implements AsyncDisposable {
  behaviour: Behaviour = 'is honest'
  readonly url: string
  readonly #close: () => Promise<unknown>

  private constructor(url: string, close: () => Promise<unknown>) {
    this.url = url
    this.#close = close
  }

  static async start(gateway: string): Promise<FaultyGateway> {
    const blocks: Buffer[] = []
    const server = createServer((asked, answer) => {
      void serve(asked, answer).catch(() => answer.destroy())
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const faulty = new FaultyGateway(`http://127.0.0.1:${port}`, async () => {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    })
    const serve = async (asked: IncomingMessage, answer: ServerResponse): Promise<void> => {
      const { behaviour } = faulty
      if (behaviour === 'stalls') return
      if (behaviour === 'refuses') {
        answer.writeHead(503).end()
        return
      }
      const { status, headers, body } = await fetched(new URL(asked.url ?? '/', gateway), asked)
      const [other = body] = blocks
      if (status === 200 && blocks.push(body) > REMEMBERED_MAX) blocks.shift()
      answer.writeHead(status, { ...headers, 'content-length': body.length })
      if (behaviour === 'closes early') {
        answer.write(body.subarray(0, body.length >> 1), () => answer.destroy())
      } else if (behaviour === 'sends garbage') {
        answer.end(body.map((byte, at) => byte ^ (at % 251)))
      } else if (behaviour === 'sends another block') {
        answer.end(Buffer.concat([other, body]).subarray(0, body.length))
      } else answer.end(body)
    }
    return faulty
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close()
  }
}

async function fetched(
  url: URL,
  { method, headers }: IncomingMessage,
): Promise<{ status: number; headers: IncomingMessage['headers']; body: Buffer }> {
  const asked = request(url, { method, headers })
  asked.end()
  const [found] = (await once(asked, 'response')) as [IncomingMessage]
  const pieces: Buffer[] = []
  for await (const piece of found) pieces.push(piece as Buffer)
  const { 'transfer-encoding': _chunked, ...kept } = found.headers
  return { status: found.statusCode ?? 502, headers: kept, body: Buffer.concat(pieces) }
}
