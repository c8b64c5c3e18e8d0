/** Builds the programs that are named, so that no test waits for them: `node build-go-programs.ts kubelet kube-scheduler`. */
import { goProgram, isGoProgram } from './go-programs.ts'
import { CommandError } from './run-command.ts'

try {
  for (const name of process.argv.slice(2)) {
    if (!isGoProgram(name)) throw new Error(`there is no Go program ${name}`)
    await goProgram(name, (line) => console.error(line))
  }
} catch (error) {
  if (!(error instanceof CommandError)) throw error
  // It has said why.
  process.exitCode = 1
}
