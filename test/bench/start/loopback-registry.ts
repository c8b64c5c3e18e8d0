import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createServer as createTlsServer } from 'node:tls'
import { runCommand } from '../../support/run-command.ts'

/** The first byte of a connection by TLS: a handshake record (RFC 8446, 5.1). */
const TLS_HANDSHAKE = 0x16

/**
 * A registry elsewhere as if it were on this host, for clients that insist on loopback or on HTTPS: passes on connections byte by byte,
 * those by TLS without it. So nobody pays for TLS on the link, where the others have none.
 */
export class LoopbackRegistry implements AsyncDisposable {
  /** Of the authority that vouches for it: its own certificate. */
  readonly certificatePath: string
  readonly #close: () => Promise<void>

  private constructor(certificatePath: string, close: () => Promise<void>) {
    this.certificatePath = certificatePath
    this.#close = close
  }

  /** Listens at `port` of 127.0.0.1, and passes on to `host`, as `<address>:<port>`. Keeps its key in `dir`. */
  static async open(dir: string, port: number, host: string): Promise<LoopbackRegistry> {
    const [keyPath, certificatePath] = [join(dir, 'key.pem'), join(dir, 'certificate.pem')]
    await runCommand('openssl', [
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:prime256v1',
      '-nodes',
      '-subj',
      '/CN=127.0.0.1',
      '-addext',
      'subjectAltName=IP:127.0.0.1',
      '-keyout',
      keyPath,
      '-out',
      certificatePath,
    ])
    const [farAddress = '', farPort] = host.split(':')
    const sockets = new Set<Duplex>()
    const passOn = (near: Duplex): void => {
      const far = connect({ host: farAddress, port: Number(farPort), allowHalfOpen: true })
      sockets.add(far)
      // Either side may break off; the other then ends too.
      Promise.all([pipeline(near, far), pipeline(far, near)])
        .catch(() => undefined)
        .finally(() => sockets.delete(far))
    }
    const keys = { key: readFileSync(keyPath), cert: readFileSync(certificatePath) }
    const tls = createTlsServer(keys, passOn).on('tlsClientError', () => undefined)
    const server = createServer({ allowHalfOpen: true }, (near: Socket) => {
      sockets.add(near)
      near.on('error', () => undefined).on('close', () => sockets.delete(near))
      near.once('data', (first: Buffer) => {
        near.pause()
        near.unshift(first)
        if (first[0] === TLS_HANDSHAKE) tls.emit('connection', near)
        else passOn(near)
      })
    }).listen(port, '127.0.0.1')
    await once(server, 'listening')
    return new LoopbackRegistry(certificatePath, async () => {
      for (const socket of sockets) socket.destroy()
      const closed = once(server, 'close')
      server.close()
      await closed
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close()
  }
}
