import { keepCompiledCode } from './compile-cache.ts'

keepCompiledCode()
// What is imported from here on is kept.
const { runCommandLine } = await import('./run-command-line.ts')
process.exitCode = await runCommandLine()
