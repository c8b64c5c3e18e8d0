import { join } from 'node:path'
import { runCommand } from '../../support/run-command.ts'
import type { StartResults } from './results.ts'

/** Ten minutes: the smallest image by three arms takes 15 s on a quiet machine, and took four minutes at a load of 50. */
const DEADLINE_MS = 600_000

/** Runs the benchmark, and gives back its results. Rejects with CommandError if a row could not be measured. */
export async function runBenchStart(words: readonly string[]): Promise<StartResults> {
  const program = join(import.meta.dirname, 'bench-start.ts')
  const all = ['--disable-warning=ExperimentalWarning', program, ...words, '--output', 'json']
  const answer = await runCommand(process.execPath, all, {
    signal: AbortSignal.timeout(DEADLINE_MS),
  })
  return JSON.parse(answer) as StartResults
}
