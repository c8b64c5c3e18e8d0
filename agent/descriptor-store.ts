import { sendDatagram } from '../snapshotter/process-calls.ts'
import type { Logger } from './logger.ts'

/** The first descriptor that a service manager passes on: sd_listen_fds(3). */
const FIRST_FD = 3

/** How many descriptors we look at. 64: we store one, and what an operator's drop-in adds, such as sockets, comes beside it. */
const HELD_MAX = 64

/** Bytes of one name, and what may stand in it: sd_pid_notify_with_fds(3). */
const NAME = /^[!-9;-~]{1,255}$/

/** The environment by which descriptors come; whoever we start must not take them for its own. */
const VARIABLES = ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES', 'LISTEN_PIDFDID'] as const

/** An open descriptor, and what it is called. */
export type NamedDescriptor = { readonly name: string; readonly fd: number }

/** Where descriptors outlive all of our processes: that of the service manager, systemd's `FileDescriptorStoreMax`. */
export type DescriptorStore = {
  /** What an earlier process of this service had kept, and strangers' beside it: names are neither unique nor ours. */
  readonly held: readonly NamedDescriptor[]
  /** Keeps a copy. One that is there already is there once. A store that cannot be reached is logged, and does without. */
  keep(descriptor: NamedDescriptor): void
  /** Closes every copy of this name. */
  forget(name: string): void
}

/** For a node whose service manager has none. */
export const noDescriptorStore: DescriptorStore = { held: [], keep() {}, forget() {} }

/**
 * The descriptor store of the service manager that started this process. Takes what it passed on out of `env`, whether it was meant for us or
 * for who started us: call it once, before anything is started. What is malformed is logged, and nothing of it is taken.
 */
export function serviceDescriptorStore(
  env: NodeJS.ProcessEnv,
  { pid, log }: { readonly pid: number; readonly log: Logger },
): DescriptorStore {
  const { held, problem } = takeHeld(env, pid)
  if (problem !== undefined) {
    log.warn({}, `nothing is taken back from the service manager: ${problem}`)
  }
  const socketPath = env['NOTIFY_SOCKET'] ?? ''
  if (socketPath === '') return { ...noDescriptorStore, held }
  const send = (state: string, fd?: number): void => {
    try {
      sendDatagram(socketPath, state, fd)
    } catch (error) {
      log.warn(
        { err: error, socketPath },
        'cannot reach the descriptor store of the service manager',
      )
    }
  }
  return {
    held,
    // FDPOLL=0: who polls /dev/fuse is woken by every read of every container.
    keep: ({ name, fd }) => send(`FDSTORE=1\nFDNAME=${name}\nFDPOLL=0`, fd),
    forget: (name) => send(`FDSTOREREMOVE=1\nFDNAME=${name}`),
  }
}

type Taken = { readonly held: readonly NamedDescriptor[]; readonly problem?: string }

/** What sd_listen_fds_with_names(3) finds, with its variables gone afterwards. */
function takeHeld(env: NodeJS.ProcessEnv, pid: number): Taken {
  const [forPid, count, names] = VARIABLES.map((name) => env[name])
  for (const name of VARIABLES) delete env[name]
  // It may have been meant for who started us.
  if (forPid === undefined || count === undefined || forPid !== String(pid)) return { held: [] }
  if (!/^\d{1,4}$/.test(count) || Number(count) > HELD_MAX) {
    return {
      held: [],
      problem: `LISTEN_FDS is ${shown(count)}, not a number up to ${HELD_MAX}`,
    }
  }
  const named = (names ?? '').split(':')
  if (names === undefined || named.length !== Number(count)) {
    return {
      held: [],
      problem: `LISTEN_FDNAMES is ${shown(names ?? '')}, not ${count} names with colons between them`,
    }
  }
  const wrong = named.find((name) => !NAME.test(name))
  if (wrong !== undefined) {
    return { held: [], problem: `LISTEN_FDNAMES has ${shown(wrong)}, which is no name` }
  }
  return { held: named.map((name, index) => ({ name, fd: FIRST_FD + index })) }
}

/** As much of a stranger's value as a log should have. */
function shown(value: string): string {
  return JSON.stringify(value.slice(0, 100))
}
