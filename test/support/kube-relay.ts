import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import { type RequestOptions, request } from 'node:https'
import type { AddressInfo } from 'node:net'
import { createInterface } from 'node:readline'
import { PassThrough } from 'node:stream'
import { type NodeCertificate, readCertificate } from './cluster-certificates.ts'

/** An event of a watch, as the API server sent it. */
export type RelayedEvent = {
  /** What was asked: path and query. */
  readonly asked: string
  readonly type: string
  readonly object: {
    readonly code?: number
    readonly metadata?: { readonly name?: string; readonly resourceVersion?: string }
  }
}

/** A way to an API server that can be cut, and sees what is asked and which events come. It adds no rights: tokens pass through. */
export class KubeRelay implements AsyncDisposable {
  readonly url: string
  /** Paths and queries, in order. */
  readonly asked: string[] = []
  readonly events: RelayedEvent[] = []
  readonly #server: Server
  #isCut = false

  private constructor(server: Server) {
    this.#server = server
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  }

  static async start(url: string, certificate: NodeCertificate): Promise<KubeRelay> {
    const { ca } = readCertificate(certificate)
    const server = createServer()
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const relay = new KubeRelay(server)
    server.on('connection', (socket) => {
      if (relay.#isCut) socket.destroy()
    })
    server.on('request', (question, answer) => {
      const asked = question.url ?? ''
      relay.asked.push(asked)
      const { method, headers } = question
      const options: RequestOptions = { ca, agent: false, headers, ...(method && { method }) }
      const passed = request(new URL(asked, url), options, (response) => {
        answer.writeHead(response.statusCode ?? 502, response.headers)
        answer.flushHeaders()
        const lines = createInterface({ input: response.pipe(new PassThrough()) })
        lines.on('line', (line) => relay.#take(asked, line))
        response.pipe(answer)
        response.on('error', () => answer.destroy())
      })
      passed.on('error', () => answer.destroy())
      answer.on('close', () => passed.destroy())
      question.pipe(passed)
    })
    return relay
  }

  /** Ends every connection, and lets nobody in until `mend`. */
  cut(): void {
    this.#isCut = true
    this.#server.closeAllConnections()
  }

  mend(): void {
    this.#isCut = false
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, 'close')
  }

  #take(asked: string, line: string): void {
    // The last line of a server that is killed may lack its end.
    if (!asked.includes('watch=true') || !line.endsWith('}}')) return
    this.events.push({ ...(JSON.parse(line) as Omit<RelayedEvent, 'asked'>), asked })
  }
}
