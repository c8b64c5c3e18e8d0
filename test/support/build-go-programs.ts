/** Builds what `make test-peers` needs, so that no test waits for it. */
import { goProgram, goProgramNames } from './go-programs.ts'
import { CommandError } from './run-command.ts'

try {
  for (const name of goProgramNames) await goProgram(name, (line) => console.error(line))
} catch (error) {
  if (!(error instanceof CommandError)) throw error
  // It has said why.
  process.exitCode = 1
}
