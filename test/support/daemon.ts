import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import type { Scratch } from './scratch.ts'

/** How long a daemon may take to be ready, in ms. 120 s: those of Kubernetes take 6 s when quiet. */
const START_DEADLINE_MS = 120_000

/** A program that runs until it is killed, and writes to a log in its scratch. */
export class Daemon implements AsyncDisposable {
  readonly name: string
  readonly logPath: string
  readonly #process: ChildProcess

  private constructor(name: string, logPath: string, process: ChildProcess) {
    this.name = name
    this.logPath = logPath
    this.#process = process
  }

  /** Starts it, with an empty environment unless one is given. Its log goes on where that of an earlier one of this name ended. */
  static async start(
    scratch: Scratch,
    name: string,
    [file = '', ...args]: readonly string[],
    env: NodeJS.ProcessEnv = {},
  ): Promise<Daemon> {
    const logPath = join(scratch.dir, `${name}.log`)
    const log = openSync(logPath, 'a')
    const child = spawn(file, args, { stdio: ['ignore', log, log], env })
    closeSync(log)
    await once(child, 'spawn')
    if (child.pid !== undefined) scratch.own(child.pid)
    return new Daemon(name, logPath, child)
  }

  /** Waits until `isReady`. Rejects with the end of its log if it ends before, or is late. */
  async whenReady(isReady: () => Promise<boolean>): Promise<void> {
    const deadline = Date.now() + START_DEADLINE_MS
    while (!(await isReady())) {
      if (this.#hasEnded || Date.now() > deadline) {
        const lines = readFileSync(this.logPath, 'utf8').trimEnd().split('\n').slice(-10)
        throw new Error(`${this.name} is not ready\n${lines.join('\n')}`)
      }
      await setTimeout(50)
    }
  }

  get pid(): number {
    const { pid } = this.#process
    if (pid === undefined) throw new Error(`${this.name} was not started`)
    return pid
  }

  async kill(): Promise<void> {
    if (this.#hasEnded) return
    const exited = once(this.#process, 'exit')
    this.#process.kill('SIGKILL')
    await exited
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill()
  }

  get #hasEnded(): boolean {
    return this.#process.exitCode !== null || this.#process.signalCode !== null
  }
}
