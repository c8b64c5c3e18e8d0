import { once } from 'node:events'
import { chmod, rm } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import { z } from 'zod'
import { CodedError } from '../snapshotter/errors.ts'
import type { Log } from '../snapshotter/log.ts'
import { parseJson } from '../snapshotter/oci/parse-json.ts'
import type { Places } from './places.ts'

/** Bytes of a container's state. 1 MiB: annotations of a pod may have 256 KiB (Kubernetes). */
const STATE_BYTES_MAX = 1024 ** 2

/** How long one question may take, in ms. 30 s: key providers have 10 each, and the runtime gives its hook as long. */
const ANSWER_MS_MAX = 30_000

/** Set by containerd's CRI on every container and pod (containerd, pkg/cri/annotations/annotations.go). */
const POD_NAMESPACE = 'io.kubernetes.cri.sandbox-namespace'

/** What a hook is told of its container (OCI runtime-spec, "State"). */
const stateSchema = z.object({
  id: z.string().min(1).max(256),
  annotations: z.record(z.string(), z.string()).nullish(),
})

type Collaborators = {
  /** Rejects if a pod of the namespace may not see what the container is made of. */
  readonly authorize: (container: string, namespace: string) => Promise<void>
  readonly log: Pick<Log, 'warn'>
}

/**
 * Answers authorize-hook.ts: a container's state in JSON up to the end of the stream, `{"allowed":true}` or
 * `{"refused":"<sentence>"}` back. Whatever goes wrong is a refusal.
 */
export class AuthorizeServer implements AsyncDisposable {
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  readonly #path: string

  private constructor(path: string, { authorize, log }: Collaborators) {
    this.#path = path
    this.#server = createServer({ allowHalfOpen: true }, (socket) => {
      this.#sockets.add(socket)
      socket.once('close', () => this.#sockets.delete(socket))
      // Whoever asked has gone: nobody is left to be told.
      socket.on('error', () => socket.destroy())
      socket.setTimeout(ANSWER_MS_MAX, () => socket.destroy())
      void answer(socket, { authorize, log })
    })
  }

  /** Listens in the place of a socket that a dead process left; its directory is the agent's own. Rejects if it cannot. */
  static async listen(
    { authorizeSocket: path }: Pick<Places, 'authorizeSocket'>,
    collaborators: Collaborators,
  ): Promise<AuthorizeServer> {
    const authorize = new AuthorizeServer(path, collaborators)
    await rm(path, { force: true })
    authorize.#server.listen(path)
    await once(authorize.#server, 'listening')
    await chmod(path, 0o600)
    return authorize
  }

  /** Questions that are not answered yet are not: their containers do not start, and are tried again. */
  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#path, { force: true })
    for (const socket of this.#sockets) socket.destroy()
    const closed = once(this.#server, 'close')
    this.#server.close()
    await closed
  }
}

async function answer(socket: Socket, { authorize, log }: Collaborators): Promise<void> {
  let container = ''
  try {
    const state = parseJson(await all(socket), stateSchema, "the container's state")
    container = state.id
    const namespace = state.annotations?.[POD_NAMESPACE]
    if (namespace === undefined) {
      throw new CodedError(
        'INVALID_ARGUMENT',
        `container ${container} has no annotation ${POD_NAMESPACE}, so nothing says whose it is; the hook is for pods, which containerd starts by CRI`,
      )
    }
    await authorize(container, namespace)
    socket.end(JSON.stringify({ allowed: true }))
  } catch (error) {
    if (socket.destroyed) return
    const refused = error instanceof Error ? error.message : String(error)
    log.warn({ container, reason: refused }, `container ${container} does not start: ${refused}`)
    // The hook reads no answer before it has written all of the state.
    socket.resume()
    socket.end(JSON.stringify({ refused }))
  }
}

async function all(socket: Socket): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  let bytes = 0
  // Not destroyed at the end: the answer is still to be sent.
  for await (const part of socket.iterator({
    destroyOnReturn: false,
  }) as AsyncIterable<Uint8Array>) {
    bytes += part.length
    if (bytes > STATE_BYTES_MAX) {
      throw new CodedError(
        'RESOURCE_EXHAUSTED',
        `the state of a container has more than ${STATE_BYTES_MAX} bytes`,
      )
    }
    parts.push(part)
  }
  return Buffer.concat(parts)
}
