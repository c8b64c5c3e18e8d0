import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { expect, test } from 'vitest'
import { Scratch } from './scratch.ts'

const project = join(import.meta.dirname, '../..')

test('a file that spins is ended and named, and the files after it run', async () => {
  await using scratch = Scratch.open('stall')
  const dir = join(scratch.dir, 'test')
  mkdirSync(dir)
  const imports = `import { expect, test } from 'vitest'\n`
  const spins = `test('spins', () => { for (;;) {} })\n//${' '.repeat(1_000)}`
  writeFileSync(join(dir, 'first.test.ts'), `${imports}${spins}`)
  writeFileSync(join(dir, 'second.test.ts'), `${imports}test('passes', () => expect(1).toBe(1))\n`)
  const vitest = spawn(
    join(project, 'node_modules/.bin/vitest'),
    [
      'run',
      '--root',
      scratch.dir,
      '--dir',
      dir,
      '--maxWorkers=1',
      '--reporter=default',
      `--reporter=${join(import.meta.dirname, 'stall-reporter.ts')}`,
    ],
    { cwd: project, env: { ...process.env, TEST_STALL_MS: '3000', NO_COLOR: '1' } },
  )
  scratch.own(vitest.pid ?? 0)
  const [out, errors, [exitCode]] = await Promise.all([
    text(vitest.stdout),
    text(vitest.stderr),
    once(vitest, 'exit'),
  ])
  expect(errors).toContain('no test ended in 3000 ms; under way: test/first.test.ts')
  expect(out).toContain('✓ test/second.test.ts')
  expect(exitCode).toBe(1)
})
