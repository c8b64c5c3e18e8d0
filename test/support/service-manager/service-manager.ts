import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Scratch } from '../scratch.ts'

const ROOT = join(import.meta.dirname, '../../..')

/** What a service told its manager. */
export type ServiceMessage = {
  readonly message: string
  /** How many descriptors came with it. */
  readonly descriptors: number
  /** Names of what is stored from then on. */
  readonly stored: readonly string[]
}

/** systemd's side of sd_notify(3) and of its descriptor store, over real sockets, for a machine on which it is not process 1. */
export class ServiceManager {
  /** How AgentProcess starts an agent that is its service. */
  readonly service: {
    readonly program: string
    readonly env: Readonly<Record<string, string>>
  }
  readonly #messages: ServiceMessage[] = []

  private constructor(paths: { readonly notify: string; readonly store: string }) {
    this.service = {
      program: join(import.meta.dirname, 'start-service.py'),
      env: {
        NOTIFY_SOCKET: paths.notify,
        DESCRIPTOR_STORE: paths.store,
        SERVICE_PROGRAM: join(ROOT, 'agent/cli/bin/ipdr-agent'),
      },
    }
  }

  /** Starts one in a scratch, with which it ends. */
  static async start(scratch: Scratch): Promise<ServiceManager> {
    const paths = {
      notify: join(scratch.run, 'notify.sock'),
      store: join(scratch.run, 'store.sock'),
    }
    const manager = new ServiceManager(paths)
    const script = join(import.meta.dirname, 'descriptor-store.py')
    const child = spawn('/usr/bin/python3', [script, paths.notify, paths.store], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    if (child.pid !== undefined) scratch.own(child.pid)
    const lines = createInterface({ input: child.stdout })
    await once(lines, 'line')
    lines.on('line', (line) => manager.#messages.push(JSON.parse(line) as ServiceMessage))
    return manager
  }

  /** All that it was told so far. */
  get messages(): readonly ServiceMessage[] {
    return this.#messages
  }

  /** The same, but for what depends on how long something takes: signs of life, and that a start goes on. */
  get untimedMessages(): readonly ServiceMessage[] {
    return this.#messages.filter(
      ({ message }) => !/^(?:WATCHDOG|EXTEND_TIMEOUT_USEC)=/.test(message),
    )
  }

  /** Names of the descriptors that it keeps. */
  get stored(): readonly string[] {
    return this.#messages.at(-1)?.stored ?? []
  }
}
