import { copyFileSync, mkdirSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { buildProgram } from '../../node-image/build-program.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'

const ROOT = join(import.meta.dirname, '../..')

/** A tree with programs that only say which file of it was run. */
function makeTree(): {
  run: () => Promise<string>
  touch: (path: string, at: number) => void
  dir: string
} {
  const scratch = Scratch.open('program')
  onTestFinished(() => scratch[Symbol.asyncDispose]())
  const dir = join(scratch.dir, 'tree')
  const touch = (path: string, at: number): void => {
    const file = join(dir, path)
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(file, `console.log('${path}')\n`)
    utimesSync(file, at, at)
  }
  for (const path of ['agent/cli/main.ts', 'snapshotter/a.ts', 'proto/a.ts']) touch(path, 1_000)
  for (const path of ['node-image/build-program.ts', 'package-lock.json']) touch(path, 1_000)
  const bin = join(dir, 'agent/cli/bin')
  mkdirSync(bin)
  for (const name of ['ipdr', 'program.sh']) {
    copyFileSync(join(ROOT, 'agent/cli/bin', name), join(bin, name))
  }
  const env = { PATH: `${dirname(process.execPath)}:/usr/bin:/bin` }
  const run = async (): Promise<string> => (await runCommand(join(bin, 'ipdr'), [], { env })).trim()
  return { run, touch, dir }
}

test('sources run where nothing was built, and what was built once it is there', async () => {
  const { run, touch } = makeTree()
  expect(await run()).toBe('agent/cli/main.ts')
  touch('build/program/ipdr.js', 2_000)
  expect(await run()).toBe('build/program/ipdr.js')
})

test.each([
  'agent/cli/main.ts',
  'agent/new/file.ts',
  'snapshotter/a.ts',
  'proto/a.ts',
  'node-image/build-program.ts',
  'package-lock.json',
])('sources run again when %s is newer than what was built', async (path) => {
  const { run, touch } = makeTree()
  touch('build/program/ipdr.js', 2_000)
  touch(path, 3_000)
  expect(await run()).toBe('agent/cli/main.ts')
})

test('where there are no sources, what was built is run', async () => {
  const { run, touch, dir } = makeTree()
  touch('build/program/ipdr.js', 500)
  for (const path of ['agent/cli/main.ts', 'snapshotter', 'proto']) {
    rmSync(join(dir, path), { recursive: true })
  }
  expect(await run()).toBe('build/program/ipdr.js')
})

test('built again from the same sources, files stay where they are and count as new: running programs still load parts of theirs', async () => {
  const first = join(await buildProgram(), 'ipdr-agent.js')
  utimesSync(first, 1_000, 1_000)
  const { ino } = statSync(first)
  await buildProgram()
  const again = statSync(first)
  expect(again.ino).toBe(ino)
  expect(again.mtimeMs).toBeGreaterThan(1_000_000)
}, 60_000)
