import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import type { Scratch } from '../../support/scratch.ts'

/** What the process sends: first that it is ready, then an answer to each question. */
type Message = { readonly answer: unknown } | { readonly failure: string }

/** A program of this folder in a process of its own, that is asked one question after the other. */
export class OwnProcess implements AsyncDisposable {
  readonly pid: number
  readonly #child: ChildProcess

  private constructor(child: ChildProcess, pid: number) {
    this.#child = child
    this.pid = pid
  }

  /** Starts it with these flags of Node, and resolves to what it says once it is ready. It ends with the scratch at the latest. */
  static async start(
    scratch: Scratch,
    program: string,
    task: unknown,
    flags: readonly string[] = [],
  ): Promise<{ readonly process: OwnProcess; readonly ready: unknown }> {
    const child = fork(join(import.meta.dirname, program), [JSON.stringify(task)], {
      execArgv: ['--disable-warning=ExperimentalWarning', ...flags],
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      serialization: 'advanced',
    })
    await once(child, 'spawn')
    const { pid = 0 } = child
    scratch.own(pid)
    const started = new OwnProcess(child, pid)
    return { process: started, ready: await started.#next(program) }
  }

  /** Rejects with what kept it from answering. */
  async ask<Answer>(question: object): Promise<Answer> {
    this.#child.send(question)
    return (await this.#next(JSON.stringify(question).slice(0, 60))) as Answer
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return
    const exited = once(this.#child, 'exit')
    // It ends by itself: only so Node writes profiles.
    this.#child.disconnect()
    await exited
  }

  async #next(what: string): Promise<unknown> {
    const ended = new AbortController()
    const { signal } = ended
    try {
      const message = await Promise.race([
        once(this.#child, 'message', { signal }).then(([message]) => message as Message),
        once(this.#child, 'exit', { signal }).then(([code]) => ({ failure: `exit code ${code}` })),
      ])
      if ('failure' in message) throw new Error(`${what}: ${message.failure}`)
      return message.answer
    } finally {
      ended.abort()
    }
  }
}

/** In the process: says that it is ready, and answers until whoever started it is done. */
export function answerQuestions(
  ready: unknown,
  answer: (question: never) => Promise<unknown>,
): void {
  const send = (message: Message): void => void process.send?.(message)
  process.on('message', (question) => {
    // Whoever asks knows which program this is.
    answer(question as never).then(
      (answer) => send({ answer }),
      (error: unknown) =>
        send({ failure: error instanceof Error ? (error.stack ?? '') : String(error) }),
    )
  })
  process.on('disconnect', () => process.exit())
  send({ answer: ready })
}

/** What the process was told to do, by its own program's type. */
export function task(): unknown {
  return JSON.parse(process.argv[2] ?? '')
}
