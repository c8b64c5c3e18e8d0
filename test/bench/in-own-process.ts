import { join } from 'node:path'
import { runCommand } from '../support/run-command.ts'

/** Runs a program of this folder on `task` in a process of its own, with these flags of Node, and reads what it prints. Rejects after `deadlineMs`. */
export async function inOwnProcess<Result>(
  program: string,
  task: unknown,
  { flags, deadlineMs }: { readonly flags: readonly string[]; readonly deadlineMs: number },
): Promise<Result> {
  const all = ['--disable-warning=ExperimentalWarning', ...flags]
  const words = [join(import.meta.dirname, program), JSON.stringify(task)]
  const signal = AbortSignal.timeout(deadlineMs)
  return JSON.parse(await runCommand(process.execPath, [...all, ...words], { signal })) as Result
}
