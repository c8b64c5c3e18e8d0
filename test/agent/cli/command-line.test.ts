import { describe, expect, test } from 'vitest'
import { parseCommandLine } from '../../../agent/cli/command-line.ts'
import { COMMANDS } from '../../../agent/cli/commands.ts'
import { EXIT_CODE_MEANINGS } from '../../../agent/cli/exit-codes.ts'
import { runIpdr } from './support/run-ipdr.ts'

const ENVIRONMENT = { version: '0.0.0', env: {}, columns: undefined }

describe('help', () => {
  test('lists every command and every exit code, on standard output', async () => {
    const { exitCode, stdout, stderr } = await runIpdr(['--help'])
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    for (const { name } of COMMANDS) expect(stdout).toContain(`ipdr ${name.split(' ')[0]}`)
    for (const [code, meaning] of EXIT_CODE_MEANINGS) {
      expect(stdout).toContain(`${code}  ${meaning}`)
    }
  })

  test.each(COMMANDS.map((command) => [command.name, command] as const))(
    'of %s has its paragraphs, options, examples and what to read next, in 100 columns',
    async (name, command) => {
      const { exitCode, stdout, stderr } = await runIpdr([...name.split(' '), '--help'])
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
      const words = stdout.replaceAll(/\s+/g, ' ')
      for (const paragraph of command.description) expect(words).toContain(paragraph)
      for (const option of Object.keys(command.options)) expect(stdout).toContain(`--${option}`)
      for (const [line] of command.examples) expect(words).toContain(line)
      expect(words).toContain(`See also: ${command.seeAlso.join(', ')}`)
      expect(stdout.split('\n').filter((line) => line.length > 100)).toEqual([])
    },
  )
})

describe('a wrong command line', () => {
  test.each([
    {
      words: ['stauts'],
      says: 'there is no such command; did you mean status?',
      see: 'ipdr --help',
    },
    { words: ['cache', 'lss'], says: 'did you mean ls?', see: 'ipdr cache --help' },
    {
      words: ['frobnicate'],
      says: 'there is no command, option or argument frob',
      see: 'ipdr --help',
    },
    { words: [], says: 'name a command', see: 'ipdr --help' },
    {
      words: ['cache'],
      says: 'what to do: cache ls, cache check, cache gc, cache rm',
      see: 'ipdr cache --help',
    },
    { words: ['status', '--colour'], says: 'option or argument colour', see: 'ipdr status --help' },
    { words: ['waited', 'a', 'now'], says: 'option or argument now', see: 'ipdr waited --help' },
    { words: ['status', '--agent'], says: 'option agent needs a value', see: 'ipdr status --help' },
    {
      words: ['pull', 'x', '-o', 'text', '-o', 'json'],
      says: '--output is given several times',
      see: 'ipdr pull --help',
    },
    {
      words: ['status', '-o', 'yaml'],
      says: '--output is "yaml" and may be "text", "json"',
      see: 'status --help',
    },
    { words: ['pull'], says: 'too few arguments: 0 given, 1 needed', see: 'ipdr pull --help' },
  ])('$words is refused with what is wrong and where help is', async ({ words, says, see }) => {
    await expect(parseCommandLine(words, ENVIRONMENT)).rejects.toMatchObject({
      exitCode: 2,
      sentence: expect.stringContaining(says),
      nextStep: expect.stringContaining(see),
    })
  })

  test.each([
    {
      words: ['stauts'],
      says: 'ipdr: there is no such command; did you mean status?\nSee ipdr --help\n',
    },
    { words: ['status', '--interval', 'soon'], says: '--interval must be a number of seconds' },
    { words: ['cache', 'gc', '--keep', '10x'], says: "'10x' is not a size\nWrite bytes, or" },
    { words: ['pull', 'debian:12'], says: 'neither a CID nor an image of ipdr.internal' },
  ])('$words exits 2, says so on standard error, and nothing else', async ({ words, says }) => {
    const { exitCode, stdout, stderr } = await runIpdr(words)
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' })
    expect(stderr).toContain(says)
  })
})

describe('what was typed', () => {
  test.each([
    { words: ['waited', '007'], value: { image: '007' } },
    { words: ['waited', '-'], value: { image: '-' } },
    { words: ['waited', '--reads', '--', '--sort'], value: { image: '--sort', reads: true } },
    { words: ['cache', 'rm', '1e3', '--', '-b', 'c'], value: { digests: ['1e3', '-b', 'c'] } },
  ])('stays what it was: $words', async ({ words, value }) => {
    const invocation = await parseCommandLine(words, ENVIRONMENT)
    expect(invocation?.values).toMatchObject(value)
  })

  test('wins over the environment, which wins over the default', async () => {
    const environment = { ...ENVIRONMENT, env: { IPDR_AGENT: '/env.sock' } }
    const fromEnv = await parseCommandLine(['status'], environment)
    expect(fromEnv?.global.agent).toBe('/env.sock')
    const typed = await parseCommandLine(['status', '--agent', '/typed.sock'], environment)
    expect(typed?.global.agent).toBe('/typed.sock')
    const neither = await parseCommandLine(['status'], { ...environment, env: { IPDR_AGENT: '' } })
    expect(neither?.global.agent).toBe('/run/ipdr-agent/admin.sock')
  })
})

describe('completion', () => {
  test.each([
    {
      shell: '/bin/bash',
      has: 'complete -o bashdefault -o default -F _ipdr_yargs_completions ipdr',
    },
    { shell: '/usr/bin/zsh', has: 'compdef _ipdr_yargs_completions ipdr' },
  ])('is a script for $shell', async ({ shell, has }) => {
    const { exitCode, stdout } = await runIpdr(['completion'], { env: { SHELL: shell } })
    expect(exitCode).toBe(0)
    expect(stdout).toContain(has)
  })

  test.each([
    { words: ['ipdr', 'st'], offers: ['status'] },
    { words: ['ipdr', 'cache', ''], offers: ['ls', 'check', 'gc', 'rm'] },
    { words: ['ipdr', 'cache', 'gc', '--k'], offers: ['--keep'] },
    { words: ['ipdr', 'status', '--output', 'j'], offers: ['json'] },
  ])('offers $offers for $words', async ({ words, offers }) => {
    const { stdout } = await runIpdr(['--get-yargs-completions', ...words])
    const last = words.at(-1) ?? ''
    const matching = stdout.split('\n').filter((line) => line !== '' && line.startsWith(last))
    expect(matching).toEqual(offers)
  })
})

test('--version prints the version of the package and nothing else', async () => {
  const { stdout } = await runIpdr(['--version'])
  expect(stdout).toMatch(/^\d+\.\d+\.\d+\n$/)
})

test('the locale of the environment changes nothing', async () => {
  const { stdout } = await runIpdr(['--help'], { env: { LC_ALL: 'de_DE.UTF-8' } })
  expect(stdout).toContain('Commands:')
})
