import { readFileSync } from 'node:fs'
import type { Reporter, TestCase, TestModule } from 'vitest/node'
import { childrenOf } from './children-of.ts'

/** How long no test may begin or end, in ms. 10 min: twice the longest limit that a test or a hook of `make test` sets itself. */
const STALL_MS = Number(process.env['TEST_STALL_MS'] ?? 600_000)

/**
 * Ends a test file that spins or waits where vitest's own limits cannot strike, which need the file's event loop, and
 * says which test it was in: the run goes on with the next file, and fails.
 */
export default class StallReporter implements Reporter {
  readonly #running = new Map<TestModule, TestCase | undefined>()
  #timer: NodeJS.Timeout | undefined

  onTestRunStart(): void {
    this.#restart()
  }

  onTestModuleStart(testModule: TestModule): void {
    this.#running.set(testModule, undefined)
    this.#restart()
  }

  onTestCaseReady(testCase: TestCase): void {
    this.#running.set(testCase.module, testCase)
    this.#restart()
  }

  onTestCaseResult(): void {
    this.#restart()
  }

  onTestModuleEnd(testModule: TestModule): void {
    this.#running.delete(testModule)
    this.#restart()
  }

  onTestRunEnd(): void {
    clearTimeout(this.#timer)
  }

  #restart(): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#endWorkers(), STALL_MS)
  }

  #endWorkers(): void {
    const where = [...this.#running].map(
      ([{ relativeModuleId }, testCase]) =>
        `${relativeModuleId} (last heard of: ${testCase?.fullName ?? 'no test'})`,
    )
    console.error(`no test ended in ${STALL_MS} ms; under way: ${where.join('; ') || 'none'}`)
    for (const pid of childrenOf(process.pid)) {
      console.error(`ending process ${pid}, ${stateOf(pid)}`)
      process.kill(pid, 'SIGKILL')
    }
    this.#restart()
  }
}

/** What the kernel says of a process, in one line: proc_pid_stat(5). */
function stateOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').trim()
  } catch {
    return 'which has ended'
  }
}
