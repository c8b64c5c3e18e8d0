import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { CodedError } from '../snapshotter/errors.ts'

/** How long a version may take to say whether it takes the configuration, in ms. 60 s: a second when quiet, half a minute at ten times the load. */
const CHECK_MS = 60_000

/** What the program that follows is told by its environment. */
const PROGRAM = 'IPDR_AGENT_PROGRAM'
const PREVIOUS = 'IPDR_AGENT_PREVIOUS'

/** This version's own program, wherever the name by which it was started leads by now. */
const OWN_PROGRAM = fileURLToPath(new URL('cli/bin/ipdr-agent', import.meta.url))

/**
 * How one version of the agent makes room for another, or for itself with another configuration: by execve(2), so that the service
 * manager sees the same process go on. Page faults wait meanwhile, held by the FUSE keeper.
 */
export class Succession {
  readonly #env: NodeJS.ProcessEnv
  readonly #argv: readonly string[]

  /** `argv`: what follows the program's name. */
  constructor(env: NodeJS.ProcessEnv, argv: readonly string[]) {
    this.#env = env
    this.#argv = argv
  }

  /** The program that took this place before; undefined unless this one is on trial. */
  get previous(): string | undefined {
    return this.#env[PREVIOUS]
  }

  /** The name that this agent was started by; what follows it is what it leads to. */
  get next(): string {
    return this.#env[PROGRAM] ?? OWN_PROGRAM
  }

  /** Asks the next program whether it takes the configuration. Rejects with CodedError FAILED_PRECONDITION and what it says if not. */
  async check(): Promise<void> {
    const child = spawn(this.next, [...this.#argv, '--check-config'], {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: this.#env,
      timeout: CHECK_MS,
    })
    let said = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said = `${said}${text}`.slice(0, 2_000)
    })
    const [code] = (await once(child, 'close')) as [number | null]
    if (code === 0) return
    const why =
      said.trim() || (code === null ? `no answer in ${CHECK_MS / 1000} s` : `exit code ${code}`)
    throw new CodedError('FAILED_PRECONDITION', `${this.next} does not start: ${why}`)
  }

  /** Never returns. Throws if the program cannot be started; this one goes on then. */
  handOver(): never {
    return this.#become(this.next, { ...this.#env, [PREVIOUS]: OWN_PROGRAM })
  }

  /** Never returns; the version before is back, and is not on trial. */
  revert(previous: string): never {
    const { [PREVIOUS]: _, ...env } = this.#env
    return this.#become(previous, { ...env, [PROGRAM]: this.next })
  }

  #become(program: string, env: NodeJS.ProcessEnv): never {
    if (process.execve === undefined) throw new Error('this Node has no process.execve')
    return process.execve(program, [program, ...this.#argv], env)
  }
}
