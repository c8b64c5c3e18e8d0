import yargs, { type Argv, type Options, type PositionalOptions } from 'yargs'
import type { Command, CommandOption } from './command.ts'
import { COMMAND_GROUPS, COMMANDS } from './commands.ts'
import { EXIT_CODE_MEANINGS, EXIT_CODES } from './exit-codes.ts'
import { CommandFailure } from './failure.ts'
import { GLOBAL_OPTIONS, type GlobalValues } from './global-options.ts'

/** What a command line asks for. */
export type Invocation = {
  readonly command: Command
  readonly values: Readonly<Record<string, unknown>>
  readonly global: GlobalValues
}

/** What yargs says, in this command's words. */
const SENTENCES: Record<string, string | { one: string; other: string }> = {
  'Positionals:': 'Arguments:',
  'Did you mean %s?': 'there is no such command; did you mean %s?',
  'Unknown argument: %s': {
    one: 'there is no command, option or argument %s',
    other: 'there are no commands, options or arguments %s',
  },
  'Not enough arguments following: %s': 'option %s needs a value',
  'Not enough non-option arguments: got %s, need at least %s': {
    one: 'too few arguments: %s given, %s needed',
    other: 'too few arguments: %s given, %s needed',
  },
  'Invalid values:': 'not a value of this option:',
  'Argument: %s, Given: %s, Choices: %s': '--%s is %s and may be %s',
}

/** Widest help text, in columns: longer lines are hard to read. */
const HELP_COLUMNS_MAX = 100

/**
 * Reads the words after `ipdr`. Undefined if they asked for help, the version or completion, which are printed by then.
 * Rejects with CommandFailure (usage) that names the help to read.
 */
export async function parseCommandLine(
  words: readonly string[],
  environment: {
    readonly version: string
    readonly env: NodeJS.ProcessEnv
    readonly columns: number | undefined
  },
): Promise<Invocation | undefined> {
  const { env } = environment
  let chosen: Invocation | undefined
  const choose = (command: Command) => (parsed: Record<string, unknown>) => {
    const values = uncovered(parsed)
    chosen = { command, values, global: values as GlobalValues }
  }
  const parser = yargs([])
    .scriptName('ipdr')
    .usage(
      '$0 <command> [options]\n\nPublishes container images on IPFS, and looks after the agent that runs them.',
    )
    .options(withEnvironment(GLOBAL_OPTIONS, env))
    .parserConfiguration({
      // A CID or a tag stays what was typed; what follows `--peer a` is not another peer.
      'parse-numbers': false,
      'parse-positional-numbers': false,
      'greedy-arrays': false,
      'dot-notation': false,
      'boolean-negation': false,
    })
    .detectLocale(false)
    // Its types know no plurals.
    .updateStrings(SENTENCES as Record<string, string>)
    .exitProcess(false)
    .wrap(Math.min(environment.columns ?? HELP_COLUMNS_MAX, HELP_COLUMNS_MAX))
    .alias('help', 'h')
    .version(environment.version)
    .group([...Object.keys(GLOBAL_OPTIONS), 'help', 'version'], 'Options of every command:')
    .strict()
    .recommendCommands()
    .demandCommand(1, 'name a command')
    .epilogue(exitCodeTable())
    .fail((message, error) => {
      throw usageFailure(message ?? error.message, words)
    })
  for (const command of COMMANDS.filter(({ name }) => !name.includes(' '))) {
    addCommand(parser, command.name, command, env, choose(command))
  }
  for (const [group, summary] of Object.entries(COMMAND_GROUPS)) {
    const members = COMMANDS.filter(({ name }) => name.startsWith(`${group} `))
    parser.command(group, summary, (inner: Argv) => {
      for (const command of members) {
        addCommand(inner, command.name.slice(group.length + 1), command, env, choose(command))
      }
      return inner
        .usage(`ipdr ${group} <command> [options]\n\n${summary}.`)
        .demandCommand(1, `name what to do: ${members.map(({ name }) => name).join(', ')}`)
        .epilogue('')
    })
  }
  parser.completion(
    'completion',
    'Print a script that completes commands and options, for zsh where SHELL is zsh, else for bash',
  )
  await parser.parseAsync(covered(words))
  const repeated = chosen && repeatedOption(chosen)
  if (repeated === undefined) return chosen
  throw usageFailure(`--${repeated} is given several times, it takes one value`, words)
}

/** Stands before a word that is no option though it looks like one. No word of a command line can hold NUL (execve(2)). */
const COVER = '\0'

/** yargs reads arguments twice, and loses a lone `-` and whatever follows `--` on the way. */
function covered(words: readonly string[]): string[] {
  if (words[0] === '--get-yargs-completions') return [...words]
  const end = words.indexOf('--')
  const [before, after] = end === -1 ? [words, []] : [words.slice(0, end), words.slice(end + 1)]
  return [
    ...before.map((word) => (word === '-' ? `${COVER}-` : word)),
    ...after.map((word) => `${COVER}${word}`),
  ]
}

function uncovered(values: Record<string, unknown>): Record<string, unknown> {
  const bare = (value: unknown): unknown =>
    typeof value === 'string' && value.startsWith(COVER) ? value.slice(COVER.length) : value
  return Object.fromEntries(
    Object.entries(values).map(([name, value]) => [
      name,
      Array.isArray(value) ? value.map(bare) : bare(value),
    ]),
  )
}

function addCommand(
  parser: Argv,
  word: string,
  command: Command,
  env: NodeJS.ProcessEnv,
  choose: (values: Record<string, unknown>) => void,
): void {
  const { summary, usage, description } = command
  parser.command(
    `${word} ${usage}`.trim(),
    summary,
    (inner: Argv) => {
      inner.usage(
        [`ipdr ${command.name} ${usage}`.trim().concat(' [options]'), ...description].join('\n\n'),
      )
      for (const [name, { ...positional }] of Object.entries(command.args)) {
        inner.positional(name, positional as PositionalOptions)
      }
      inner.options(withEnvironment(command.options, env))
      inner.group(Object.keys(command.options), 'Options:')
      return inner.epilogue(`${examples(command)}\n\nSee also: ${command.seeAlso.join(', ')}`)
    },
    choose,
  )
}

/** The options as yargs knows them, with what the environment says as default. */
function withEnvironment(
  options: Readonly<Record<string, CommandOption>>,
  env: NodeJS.ProcessEnv,
): Record<string, Options> {
  return Object.fromEntries(
    Object.entries(options).map(([key, option]) => {
      const given = option.env === undefined ? undefined : env[option.env]
      return [key, given === undefined || given === '' ? option : { ...option, default: given }]
    }),
  )
}

/** The option that takes one value and was given several, which yargs makes a list of. */
function repeatedOption({ command, values }: Invocation): string | undefined {
  return Object.entries({ ...GLOBAL_OPTIONS, ...command.options })
    .filter(([name, option]) => option.array !== true && Array.isArray(values[name]))
    .map(([name]) => name)
    .at(0)
}

function usageFailure(message: string, words: readonly string[]): CommandFailure {
  const [first, second] = words
  const named =
    COMMANDS.find(({ name }) => name === `${first} ${second}` || name === first)?.name ??
    Object.keys(COMMAND_GROUPS).find((group) => group === first)
  const help = named === undefined ? 'ipdr --help' : `ipdr ${named} --help`
  const sentence = message.replaceAll(COVER, '').replaceAll(/\s+/g, ' ').trim()
  return new CommandFailure(EXIT_CODES.usage, sentence, `See ${help}`)
}

/** One below the other: in columns of their own, long ones would be broken and could not be copied. */
function examples({ examples }: Command): string {
  const pairs = examples.map(([line, meaning]) => `  # ${meaning}\n  ${line}`)
  return `Examples:\n${pairs.join('\n')}`
}

function exitCodeTable(): string {
  const rows = EXIT_CODE_MEANINGS.map(
    ([code, meaning]) => `  ${String(code).padStart(3)}  ${meaning}`,
  )
  return `Exit codes:\n${rows.join('\n')}\n\nSee also: man ipdr, man ipdr-agent`
}
