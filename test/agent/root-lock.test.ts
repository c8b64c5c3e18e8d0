import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { lockRoot } from '../../agent/root-lock.ts'

test('one process has a root, until it lets go or ends', () => {
  const root = join(mkdtempSync('/tmp/ipdr-lock-'), 'root')
  onTestFinished(() => rmSync(join(root, '..'), { recursive: true }))
  const script = `
    import { lockRoot } from '${new URL('../../agent/root-lock.ts', import.meta.url).href}'
    try { lockRoot('${root}'); console.log('locked') } catch (error) { console.log(error.code, error.message) }`
  const another = (): string =>
    execFileSync(process.execPath, ['--input-type=module', '-e', script], {
      encoding: 'utf8',
      timeout: 30_000,
    })
  {
    using _ = lockRoot(root)
    expect(another()).toMatch(/^UNAVAILABLE .*is in use by another agent: stop that one first/)
  }
  expect(another()).toBe('locked\n')
  expect(another()).toBe('locked\n') // Though the one before ended without a word.
})
