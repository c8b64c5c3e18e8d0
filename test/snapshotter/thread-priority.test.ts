import { expect, test } from 'vitest'
import { runCommand } from '../support/run-command.ts'

const MODULE = new URL('../../snapshotter/thread-priority.ts', import.meta.url).href

/** A process of its own, whose threads nobody else needs. */
const PROGRAM = `
  import { readdirSync, readFileSync } from 'node:fs'
  import { readFile } from 'node:fs/promises'
  import { getPriority } from 'node:os'
  import { Worker } from 'node:worker_threads'
  import { givePrecedence, takePrecedence } from '${MODULE}'
  // Has libuv start its threads.
  await readFile('/proc/self/stat')
  const before = getPriority(0)
  const isTaken = takePrecedence()
  const nicesOf = (name) => [...new Set(readdirSync('/proc/self/task')
    .filter((thread) => readFileSync('/proc/self/task/' + thread + '/comm', 'utf8').trim() === name)
    .map((thread) => getPriority(Number(thread))))]
  const told = { before, isTaken, own: getPriority(0), v8: nicesOf('V8Worker'), libuv: nicesOf('libuv-worker') }
  const thread = new Worker(\`
    const { parentPort } = require('node:worker_threads')
    const { getPriority } = require('node:os')
    const inherited = getPriority(0)
    import('${MODULE}').then(({ givePrecedence }) => {
      const takeBack = givePrecedence()
      const given = getPriority(0)
      takeBack()
      parentPort.postMessage({ inherited, given, taken: getPriority(0) })
    })\`, { eval: true, execArgv: [] })
  thread.once('message', (below) => console.log(JSON.stringify({ ...told, below })))`

test('a thread that takes precedence has it with the threads that it starts, until one gives it back, and with V8’s and libuv’s', async () => {
  const words = ['--disable-warning=ExperimentalWarning', '--input-type=module', '--eval', PROGRAM]
  const told: unknown = JSON.parse(await runCommand(process.execPath, words))
  expect(told).toEqual({
    before: 0,
    isTaken: true,
    own: -10,
    v8: [-10],
    libuv: [-10],
    below: { inherited: -10, given: 0, taken: -10 },
  })
})
