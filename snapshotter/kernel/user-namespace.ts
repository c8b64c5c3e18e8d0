import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { open, readlink, writeFile } from 'node:fs/promises'
import { setTimeout } from 'node:timers/promises'
import { KernelError } from '../errors.ts'

/** How long a program may take to be in a namespace of its own, in ms. 10 s: 5 ms when quiet, 1 s at a load of 100. */
const DEADLINE_MS = 10_000

/**
 * A user namespace in which nobody is, with these mappings as in user_namespaces(7), lines of `inside outside length`. Close the
 * descriptor to give it up. Rejects with KernelError if unshare(1) is missing, or the kernel refuses.
 */
export async function openUserNamespace({
  uidMap,
  gidMap,
}: {
  readonly uidMap: string
  readonly gidMap: string
}): Promise<AsyncDisposable & { readonly fd: number }> {
  // It ends when we do, or let go of its input.
  const child = spawn('unshare', ['--user', 'cat'], { stdio: ['pipe', 'ignore', 'ignore'] })
  try {
    await once(child, 'spawn')
    const own = await readlink('/proc/self/ns/user')
    const place = `/proc/${child.pid}`
    const until = performance.now() + DEADLINE_MS
    while ((await readlink(`${place}/ns/user`)) === own) {
      if (performance.now() > until) {
        throw new KernelError('UNAVAILABLE', `no user namespace was made in ${DEADLINE_MS} ms`)
      }
      await setTimeout(1)
    }
    await writeFile(`${place}/uid_map`, uidMap)
    await writeFile(`${place}/gid_map`, gidMap)
    const namespace = await open(`${place}/ns/user`, 'r')
    return { fd: namespace.fd, [Symbol.asyncDispose]: () => namespace.close() }
  } catch (error) {
    if (error instanceof KernelError) throw error
    const reason = error instanceof Error ? error.message : String(error)
    throw new KernelError(
      'FAILED_PRECONDITION',
      `a user namespace cannot be made (${reason}): ids of containers cannot be shifted on this node`,
      {},
      error,
    )
  } finally {
    child.stdin.end()
  }
}
