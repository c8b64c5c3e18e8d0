import koffi from 'koffi'
import { busyboxPath } from './debian-programs.ts'
import { runCommand } from './run-command.ts'

/** linux/sched.h */
const CLONE_NEWNET = 0x40000000

/**
 * Gives this process, and all that it starts from now on, a network in which there is nothing but loopback and, on it, `addresses`. For
 * a test file, which has a process of its own: it may then use any port, and addresses that a cluster gives. What has to be downloaded
 * has to be here before.
 */
export async function enterOwnNetwork(addresses: readonly string[]): Promise<void> {
  const unshare = koffi.load(null).func('int unshare(int flags)') as (flags: number) => number
  if (unshare(CLONE_NEWNET) !== 0) {
    throw new Error(`the kernel gives no network of one's own: errno ${koffi.errno()}`)
  }
  await runCommand(busyboxPath, ['ip', 'link', 'set', 'lo', 'up'])
  for (const address of addresses) {
    await runCommand(busyboxPath, ['ip', 'address', 'add', `${address}/32`, 'dev', 'lo'])
  }
}
