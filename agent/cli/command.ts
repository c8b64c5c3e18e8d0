import type { InferredOptionType, Options, PositionalOptions } from 'yargs'
import type { Session } from './session.ts'

/** An option as yargs takes it, and what the manual page adds. */
export type CommandOption = Options & {
  readonly describe: string
  /** What the value stands for in the manual page: DIR, SIZE. None: the option is a switch. */
  readonly valueName?: string
  /** Environment variable that gives the value where the option does not. */
  readonly env?: string
}

export type CommandArgument = PositionalOptions & { readonly describe: string }

/** A command line to copy, and what it does. */
export type Example = readonly [commandLine: string, meaning: string]

/** One command of `ipdr`: everything that the help, the manual page, the completion and the shell need to know of it. */
export type Command = {
  /** Words after `ipdr`: `push`, `cache ls`. */
  readonly name: string
  /** Positional arguments in yargs' spelling: `<required>`, `[optional]`, `<many..>`. Empty if it takes none. */
  readonly usage: string
  /** One line, for lists of commands. */
  readonly summary: string
  /** Paragraphs. */
  readonly description: readonly string[]
  readonly args: Readonly<Record<string, CommandArgument>>
  readonly options: Readonly<Record<string, CommandOption>>
  readonly examples: readonly Example[]
  /** Commands and manual pages worth reading next. */
  readonly seeAlso: readonly string[]
  /** Does it. Rejects with whatever failed; main.ts says so and chooses the exit code. */
  run(values: Readonly<Record<string, unknown>>, session: Session): Promise<void>
}

type Arguments = Readonly<Record<string, CommandArgument>>
type CommandOptions = Readonly<Record<string, CommandOption>>

/** What yargs hands to a command that declares these arguments and options, by name. */
export type Values<A extends Arguments, O extends CommandOptions> = {
  readonly [Name in keyof (A & O)]: InferredOptionType<(A & O)[Name]>
}

/** Ties the types of a command's values to the arguments and options that it declares. */
export function defineCommand<const A extends Arguments, const O extends CommandOptions>(
  command: Omit<Command, 'args' | 'options' | 'run'> & {
    readonly args: A
    readonly options: O
    readonly run: (values: Values<A, O>, session: Session) => Promise<void>
  },
): Command {
  return { ...command, run: (values, session) => command.run(values as Values<A, O>, session) }
}
