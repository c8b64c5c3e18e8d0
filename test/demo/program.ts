import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Scratch } from '../support/scratch.ts'

/** Lines of standard error that a failure is explained with: a sentence, what to do next, and a few before. */
const LAST_LINES = 5

type Listeners = {
  readonly env?: NodeJS.ProcessEnv
  /** Told every line of standard output. */
  readonly onOutput?: (line: string) => void
  /** Told every line of standard error. */
  readonly onError?: (line: string) => void
}

/** A program in a process of its own. It ends with its scratch, and so does all that it started, however it comes to that. */
export class Program implements AsyncDisposable {
  /** Resolves once it has ended well. Rejects with the last of what it said, if it has not. */
  readonly ended: Promise<void>
  readonly pid: number
  readonly #process: ChildProcess
  readonly #exited: Promise<unknown>

  constructor(scratch: Scratch, argv: readonly string[], listeners: Listeners = {}) {
    const [file = '', ...args] = argv
    const { env = process.env, onOutput, onError } = listeners
    const child = spawn(file, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
    if (child.pid !== undefined) scratch.own(child.pid)
    this.#process = child
    this.pid = child.pid ?? 0
    const lastLines: string[] = []
    createInterface({ input: child.stdout }).on('line', (line) => onOutput?.(line))
    createInterface({ input: child.stderr }).on('line', (line) => {
      lastLines.push(line)
      if (lastLines.length > LAST_LINES) lastLines.shift()
      onError?.(line)
    })
    this.ended = once(child, 'close').then(([code, signal]) => {
      if (code === 0) return
      // Progress as JSON explains nothing.
      const said = lastLines.filter((line) => !line.startsWith('{')).join('\n')
      throw new Error(`${argv.join(' ')}: ${signal ?? `exit code ${code}`}\n${said}`)
    })
    // Whoever stops it does not ask how it ended, and `close` waits for all that it started too.
    this.ended.catch(() => undefined)
    this.#exited = once(child, 'exit').catch(() => undefined)
  }

  /** Ends it as Ctrl-C would, and waits until it is gone. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill('SIGTERM')
    await this.#exited
  }
}

/** Runs a program to its end and gives back its standard output. Rejects as `Program.ended`, or once `signal` aborts. */
export async function runProgram(
  scratch: Scratch,
  argv: readonly string[],
  { signal, onError }: { readonly signal: AbortSignal; readonly onError: (line: string) => void },
): Promise<string> {
  let output = ''
  await using program = new Program(scratch, argv, {
    onOutput: (line) => (output += `${line}\n`),
    onError,
  })
  await orAborted(program.ended, signal)
  return output
}

/** What `waited` gives, unless `signal` aborts before it does. */
export async function orAborted<T>(waited: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted()
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const stop = (): void => reject(signal.reason)
  signal.addEventListener('abort', stop)
  try {
    return await Promise.race([waited, aborted])
  } finally {
    signal.removeEventListener('abort', stop)
  }
}
