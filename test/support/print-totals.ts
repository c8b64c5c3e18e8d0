import { readFileSync } from 'node:fs'

// `.ci/run` closes with this line. The path is that of vitest's JSON report; the exit code is 1 unless every test of
// the report passed, and there was one.

type Report = {
  readonly success: boolean
  readonly numPassedTests: number
  readonly numFailedTests: number
  readonly testResults: readonly { readonly status: string; readonly assertionResults: unknown[] }[]
}

const [path = ''] = process.argv.slice(2)
const report = read(path)
// A file that does not even load holds no test that could fail.
const broken = report.testResults.filter(
  ({ status, assertionResults }) => status === 'failed' && assertionResults.length === 0,
).length
const failed = report.numFailedTests + broken
console.log(`${report.numPassedTests} passed, ${failed} failed`)
process.exitCode = report.success && failed === 0 && report.numPassedTests > 0 ? 0 : 1

function read(path: string): Report {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Report
  } catch {
    console.error('the tests ended without a report')
    return { success: false, numPassedTests: 0, numFailedTests: 0, testResults: [] }
  }
}
