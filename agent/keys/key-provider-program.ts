import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { KEY_PROVIDER_MESSAGE_BYTES_MAX } from '../../snapshotter/encryption/key-provider-protocol.ts'
import { LayerError } from '../../snapshotter/errors.ts'

/**
 * Runs a key provider's program once: the request on its standard input, the answer on its standard output; nothing secret stands in
 * its arguments, and what it says on standard error is not read. Whatever it started is ended with it. `what` names it.
 * Rejects with LayerError: UNAVAILABLE if it cannot be started, PERMISSION_DENIED if it fails, RESOURCE_EXHAUSTED if it answers too
 * much; and with the reason of `signal`.
 */
export async function askKeyProviderProgram(
  { path, args }: { readonly path: string; readonly args: readonly string[] },
  request: Uint8Array,
  what: string,
  signal: AbortSignal,
): Promise<Uint8Array> {
  signal.throwIfAborted()
  // A process group of its own, so that all of it can be ended.
  const child = spawn(path, args, { stdio: ['pipe', 'pipe', 'ignore'], detached: true })
  const kill = (): void => {
    if (child.pid === undefined) return
    try {
      process.kill(-child.pid, 'SIGKILL')
    } catch {
      // All of it has ended by itself.
    }
  }
  signal.addEventListener('abort', kill)
  try {
    const pieces: Buffer[] = []
    let size = 0
    child.stdout.on('data', (piece: Buffer) => {
      size += piece.length
      if (size <= KEY_PROVIDER_MESSAGE_BYTES_MAX) pieces.push(piece)
      else kill()
    })
    // A program that does not read its input is judged by its answer.
    child.stdin.on('error', () => undefined)
    child.stdin.end(request)
    const [exitCode] = (await once(child, 'close')) as [number | null]
    signal.throwIfAborted()
    if (size > KEY_PROVIDER_MESSAGE_BYTES_MAX) {
      throw new LayerError(
        'RESOURCE_EXHAUSTED',
        `${what} answered with more than ${KEY_PROVIDER_MESSAGE_BYTES_MAX} bytes: is ${path} a key provider?`,
      )
    }
    if (exitCode === 0) return Buffer.concat(pieces)
    throw new LayerError(
      'PERMISSION_DENIED',
      `${what} refused: ${path} ended with ${exitCode === null ? 'a signal' : `exit code ${exitCode}`}; run it by hand to see why`,
    )
  } catch (error) {
    if (error instanceof LayerError || signal.aborted) throw error
    const why = error instanceof Error ? error.message : String(error)
    throw new LayerError(
      'UNAVAILABLE',
      `${what} cannot be asked: ${why}; install its program, or correct its path in the configuration of key providers`,
    )
  } finally {
    signal.removeEventListener('abort', kill)
    kill()
  }
}
