import { setMaxListeners } from 'node:events'
import { version } from '../version.ts'
import { parseCommandLine } from './command-line.ts'
import { EXIT_CODES, type ExitCode } from './exit-codes.ts'
import { describeFailure, Interrupted } from './failure.ts'
import type { GlobalValues } from './global-options.ts'
import { Output } from './output.ts'
import { Progress, type ProgressStyle } from './progress.ts'

/** One run of the command: the only place that knows argv, environment, signals and standard streams. */
export async function runCommandLine(): Promise<ExitCode> {
  const stop = new AbortController()
  // Every block that is read listens to it.
  setMaxListeners(0, stop.signal)
  // Once: a second Ctrl-C ends the process at once, as the kernel does it.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => stop.abort(new Interrupted(signal)))
  }
  process.stdout.on('error', leaveUnwritten)
  process.stderr.on('error', leaveUnwritten)
  // A part that failed where nobody waited for it.
  process.once('uncaughtException', (error) => process.exit(report(error, stop.signal)))
  try {
    const invocation = await parseCommandLine(process.argv.slice(2), {
      version,
      env: process.env,
      columns: process.stdout.isTTY ? process.stdout.columns : undefined,
    })
    if (invocation === undefined) return EXIT_CODES.ok
    const { command, values, global } = invocation
    using progress = new Progress(progressStyle(global), process.stderr)
    await command.run(values, {
      output: new Output({ format: global.output, quiet: global.quiet, stream: process.stdout }),
      progress,
      agentSocket: global.agent,
      signal: stop.signal,
    })
    return EXIT_CODES.ok
  } catch (error) {
    return report(error, stop.signal)
  }
}

function progressStyle({ progress, quiet }: GlobalValues): ProgressStyle {
  if (quiet) return 'none'
  if (progress !== 'auto') return progress
  return process.stderr.isTTY ? 'bars' : 'lines'
}

/** Says what failed, and chooses the exit code. */
function report(error: unknown, signal: AbortSignal): ExitCode {
  const { sentence, nextStep, exitCode } = describeFailure(error, signal)
  if (process.env['IPDR_DEBUG'] === '1') console.error(error)
  process.stderr.write(`ipdr: ${sentence}\n${nextStep === undefined ? '' : `${nextStep}\n`}`)
  return exitCode
}

/** A standard stream that takes no more. `ipdr … | head -1` ends like a program that dies of SIGPIPE: quietly. */
function leaveUnwritten(error: NodeJS.ErrnoException): never {
  if (error.code === 'EPIPE') process.exit(EXIT_CODES.brokenPipe)
  process.stderr.write(`ipdr: the answer cannot be written: ${error.message}\n`)
  process.exit(EXIT_CODES.failure)
}
