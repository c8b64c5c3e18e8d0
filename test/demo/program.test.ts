import { expect, test } from 'vitest'
import { Scratch } from '../support/scratch.ts'
import { Program, runProgram } from './program.ts'

const never = new AbortController().signal

test('a program gives back its standard output, and tells of its standard error line by line', async () => {
  await using scratch = Scratch.open('program')
  const lines: string[] = []
  const argv = ['sh', '-c', 'echo one >&2; echo two >&2; echo answer']
  const options = { signal: never, onError: (line: string) => lines.push(line) }
  expect(await runProgram(scratch, argv, options)).toBe('answer\n')
  expect(lines).toEqual(['one', 'two'])
})

test('a program that fails says so in its own last words, without its progress', async () => {
  await using scratch = Scratch.open('program')
  const argv = ['sh', '-c', `echo '{"doneBytes":1}' >&2; echo 'the disk is full' >&2; exit 3`]
  const failed = runProgram(scratch, argv, { signal: never, onError: () => {} })
  await expect(failed).rejects.toThrow(/exit code 3\nthe disk is full$/)
})

test('a program that is missing is a failure', async () => {
  await using scratch = Scratch.open('program')
  const failed = runProgram(scratch, ['/no/program'], { signal: never, onError: () => {} })
  await expect(failed).rejects.toThrow('/no/program')
})

test('a program is stopped by a signal that aborts', async () => {
  await using scratch = Scratch.open('program')
  const stop = new AbortController()
  const argv = ['sh', '-c', 'echo ready >&2; exec sleep infinity']
  const onError = (): void => stop.abort(new Error('enough'))
  await expect(runProgram(scratch, argv, { signal: stop.signal, onError })).rejects.toThrow(
    'enough',
  )
})

test('what a program left running ends with its scratch', async () => {
  const scratch = Scratch.open('program')
  const { promise: started, resolve } = Promise.withResolvers<string>()
  // What it starts before it is in the scratch's group nobody would find.
  const owned = 'until grep -q ipdr-test /proc/self/cgroup; do :; done'
  const argv = ['sh', '-c', `${owned}; setsid sleep infinity & echo started; wait`]
  const program = new Program(scratch, argv, { onOutput: resolve })
  await started
  await program[Symbol.asyncDispose]()
  await scratch[Symbol.asyncDispose]()
  // It holds the program's output: as long as it runs, this would not settle.
  await expect(program.ended).rejects.toThrow('SIGTERM')
})

test('a program that serves ends when it is disposed of', async () => {
  await using scratch = Scratch.open('program')
  const { promise: ready, resolve } = Promise.withResolvers<string>()
  const program = new Program(scratch, ['sh', '-c', 'echo ready; exec sleep infinity'], {
    onOutput: resolve,
  })
  expect(await ready).toBe('ready')
  await program[Symbol.asyncDispose]()
  await expect(program.ended).rejects.toThrow('SIGTERM')
})
