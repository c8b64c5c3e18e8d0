import { sendDatagram } from '../snapshotter/process-calls.ts'
import type { Logger } from './logger.ts'

/** Tells the service manager how the agent is doing; see sd_notify(3). */
export type Notifier = {
  /** The start goes on, and will say so again within this time. */
  starting(againWithinMs: number): void
  ready(): void
  alive(): void
  stopping(): void
}

/** For a node without a service manager. */
export const noNotifier: Notifier = { starting() {}, ready() {}, alive() {}, stopping() {} }

/** Speaks to $NOTIFY_SOCKET if systemd (or a container runtime) set it; a message that cannot be sent is logged once. */
export function serviceNotifier(socketPath: string | undefined, log: Logger): Notifier {
  if (socketPath === undefined || socketPath === '') return noNotifier
  let failed = false
  const send = (state: string): void => {
    try {
      sendDatagram(socketPath, state)
    } catch (error) {
      if (!failed)
        log.warn({ err: error, socketPath }, 'cannot tell the service manager how we are')
      failed = true
    }
  }
  return {
    starting: (againWithinMs) => send(`EXTEND_TIMEOUT_USEC=${againWithinMs * 1000}`),
    ready: () => send('READY=1'),
    alive: () => send('WATCHDOG=1'),
    stopping: () => send('STOPPING=1'),
  }
}
