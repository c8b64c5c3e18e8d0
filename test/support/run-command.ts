import { spawn } from 'node:child_process'

/** A command that could not be started, failed or was stopped. `stderr` holds the last of what it said. */
export class CommandError extends Error {
  override readonly name = 'CommandError'
  readonly exitCode: number | undefined
  readonly stderr: string

  constructor(message: string, exitCode: number | undefined, stderr: string) {
    super(`${message}\n${stderr.trim()}`)
    this.exitCode = exitCode
    this.stderr = stderr
  }
}

export type CommandOptions = {
  /** Ends the command by SIGKILL; by default five minutes after its start. */
  readonly signal?: AbortSignal
  readonly cwd?: string
  /** The whole environment; by default our own. */
  readonly env?: NodeJS.ProcessEnv
  /** What it reads from its standard input; by default nothing. */
  readonly input?: string | Uint8Array
  /** Told every line of its output, of both streams, as it comes. */
  readonly onLine?: (line: string) => void
}

/** Longer than any command of the tests takes on a slow machine. */
const DEADLINE_MS = 300_000

/** Runs `file` without a shell and gives back its standard output as text. Rejects with CommandError. */
export async function runCommand(
  file: string,
  args: readonly string[],
  options: CommandOptions = {},
): Promise<string> {
  const { signal = AbortSignal.timeout(DEADLINE_MS), cwd, env, input, onLine } = options
  const shown = `${file} ${args.join(' ')}`
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const child = spawn(file, args, { signal, killSignal: 'SIGKILL', cwd, env })
  const [stdout, stderr] = [child.stdout.setEncoding('utf8'), child.stderr.setEncoding('utf8')]
  let [out, err] = ['', '']
  stdout.on('data', (text: string) => (out += text))
  stderr.on('data', (text: string) => (err += text))
  if (onLine !== undefined) for (const stream of [stdout, stderr]) onLines(stream, onLine)
  child.on('error', (error) =>
    reject(new CommandError(`${shown}: ${error.message}`, undefined, err)),
  )
  child.on('close', (code, killedBy) => {
    if (code === 0) resolve(out)
    else
      reject(
        new CommandError(`${shown}: ${killedBy ?? `exit code ${code}`}`, code ?? undefined, err),
      )
  })
  // A command that ends without reading its input is judged by its exit code, not by the broken pipe.
  child.stdin.on('error', () => {})
  child.stdin.end(input)
  return await promise
}

function onLines(stream: NodeJS.ReadableStream, onLine: (line: string) => void): void {
  let rest = ''
  stream.on('data', (text: string) => {
    const lines = (rest + text).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) onLine(line)
  })
  stream.on('end', () => {
    if (rest !== '') onLine(rest)
  })
}
