import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { runCommand } from './run-command.ts'
import type { Scratch } from './scratch.ts'

/** A network of its own, with loopback up. It is there as long as the scratch, held by a process that sleeps. */
export class NetworkNamespace {
  readonly #pid: number

  private constructor(pid: number) {
    this.#pid = pid
  }

  static async start(scratch: Scratch): Promise<NetworkNamespace> {
    const script = 'ip link set lo up && echo ready && exec sleep infinity'
    const holder = spawn('unshare', ['--net', 'sh', '-euc', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    if (holder.pid === undefined) throw new Error('unshare (util-linux) cannot be started')
    scratch.own(holder.pid)
    const ended = once(holder, 'exit').then(([code]) => {
      throw new Error(`a network namespace cannot be made: exit code ${code}; root is needed`)
    })
    ended.catch(() => undefined)
    await Promise.race([once(createInterface(holder.stdout), 'line'), ended])
    return new NetworkNamespace(holder.pid)
  }

  /** Words that, in front of a command, have it run in here. */
  get words(): readonly string[] {
    return ['nsenter', `--net=/proc/${this.#pid}/ns/net`]
  }

  /** What `ip link` calls it. */
  get name(): string {
    return String(this.#pid)
  }

  async run(...command: readonly string[]): Promise<string> {
    const [file = '', ...words] = [...this.words, ...command]
    return await runCommand(file, words)
  }
}
