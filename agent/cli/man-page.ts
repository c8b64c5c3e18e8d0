import type { Command, CommandArgument, CommandOption } from './command.ts'
import { COMMANDS } from './commands.ts'
import { EXIT_CODE_MEANINGS } from './exit-codes.ts'
import { GLOBAL_OPTIONS } from './global-options.ts'

/** What belongs to no single command, in paragraphs. */
const DESCRIPTION = [
  'ipdr publishes container images on IPFS, and looks after the agent that runs them on a node of a cluster. An image is named by the CID of its root, ipdr.internal/<cid>, which containerd pulls through the agent; its bytes are fetched and verified when a process first reads them.',
  'push, serve, inspect and repository need no agent and no root: they work on a directory of blocks. optimize, pull, status, waited and cache ask the agent of the node that they run on.',
  'Answers go to standard output: as text, or with --output json as one JSON document with sizes in bytes and times in milliseconds. Progress and failures go to standard error; a failure is one sentence and, where there is one, the next step.',
]

const ENVIRONMENT: readonly (readonly [name: string, meaning: string])[] = [
  ['IPDR_AGENT', 'Socket of the agent, where --agent does not say it.'],
  ['IPDR_REPOSITORY', 'Directory of published blocks, where --repository does not say it.'],
  [
    'CONTAINERD_ADDRESS, CONTAINERD_NAMESPACE',
    'Socket and namespace for push containerd:IMAGE, the socket also for optimize, where --address and --namespace do not say them.',
  ],
  ['XDG_DATA_HOME', 'The repository is its sub-directory ipdr; ~/.local/share unless set.'],
  ['IPDR_DEBUG', 'Set to 1, failures come with a stack trace.'],
  ['NO_COLOR', 'Set to anything, nothing is bold.'],
]

const FILES: readonly (readonly [path: string, meaning: string])[] = [
  ['/run/ipdr-agent/admin.sock', 'The agent listens here unless it is configured otherwise.'],
  ['~/.local/share/ipdr', 'Published blocks, their roots and the key of ipdr serve.'],
  ['~/.cache/ipdr/compiled', 'Compiled code, so that the command starts sooner. May be removed.'],
]

/** The manual page ipdr(1) in roff (man(7)), from what the commands say of themselves. */
export function manPage(): string {
  return [
    '.\\" Written by agent/cli/write-man.ts from the commands\' own descriptions; change those.',
    '.TH IPDR 1 "" "ipdr" "User Commands"',
    ...section('NAME', [
      'ipdr \\- publish container images on IPFS and look after the agent that runs them',
    ]),
    ...section('SYNOPSIS', ['.B ipdr', `.I ${roff('command')}`, roff('[arguments] [options]')]),
    ...section('DESCRIPTION', paragraphs(DESCRIPTION)),
    ...section('COMMANDS', COMMANDS.flatMap(commandSection)),
    ...section('OPTIONS OF EVERY COMMAND', optionList(GLOBAL_OPTIONS)),
    ...section('COMPLETION', [
      ...paragraphs([
        'ipdr completion prints a script for bash, or for zsh where SHELL says so, that completes commands, options and their values:',
      ]),
      ...example('ipdr completion >> ~/.bashrc'),
    ]),
    ...section(
      'EXIT STATUS',
      EXIT_CODE_MEANINGS.flatMap(([code, meaning]) =>
        item(roff(String(code)), sentence(capitalized(meaning))),
      ),
    ),
    ...section(
      'ENVIRONMENT',
      ENVIRONMENT.flatMap(([name, meaning]) => item(roff(name), meaning)),
    ),
    ...section(
      'FILES',
      FILES.flatMap(([path, meaning]) => item(`\\fI${roff(path)}\\fR`, meaning)),
    ),
    ...section('SEE ALSO', ['.BR ipdr\\-agent (8),', '.BR ctr (8),', '.BR containerd (8)']),
    '',
  ].join('\n')
}

function commandSection({ name, usage, description, args, options, examples }: Command): string[] {
  return [
    `.SS ipdr ${roff(name)}${usage === '' ? '' : ` \\fI${roff(usage)}\\fR`}`,
    ...paragraphs(description),
    ...argumentList(args),
    ...optionList(options),
    ...examples.flatMap(([line, meaning]) => [
      '.PP',
      textLine(`${capitalized(meaning)}:`),
      ...example(line),
    ]),
  ]
}

function argumentList(args: Readonly<Record<string, CommandArgument>>): string[] {
  return Object.entries(args).flatMap(([name, { describe }]) =>
    item(`\\fI${roff(name)}\\fR`, sentence(describe)),
  )
}

function optionList(options: Readonly<Record<string, CommandOption>>): string[] {
  return Object.entries(options).flatMap(([name, option]) => {
    const short = typeof option.alias === 'string' ? `\\fB${roff(`-${option.alias}`)}\\fR, ` : ''
    const value = option.valueName === undefined ? '' : ` \\fI${roff(option.valueName)}\\fR`
    const choices = option.choices === undefined ? [] : [`One of ${option.choices.join(', ')}.`]
    const unset =
      option.default === undefined || option.default === false || isEmpty(option.default)
    const initial = unset ? [] : [`Default: ${String(option.default)}.`]
    const says = [sentence(option.describe), ...choices, ...initial].join(' ')
    return item(`${short}\\fB${roff(`--${name}`)}\\fR${value}`, says)
  })
}

function isEmpty(value: unknown): boolean {
  return Array.isArray(value) && value.length === 0
}

function section(title: string, lines: readonly string[]): string[] {
  return [`.SH ${title}`, ...lines]
}

function paragraphs(texts: readonly string[]): string[] {
  return texts.flatMap((text) => ['.PP', textLine(text)])
}

/** A term, already in roff, and what it means. */
function item(term: string, meaning: string): string[] {
  return ['.TP', term, textLine(meaning)]
}

function example(line: string): string[] {
  return ['.RS 4', '.nf', textLine(line), '.fi', '.RE']
}

function sentence(text: string): string {
  return /[.?!]$/.test(text) ? text : `${text}.`
}

function capitalized(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}`
}

/** A line of text: one that begins with a control character of roff would be a request (groff(7)). */
function textLine(text: string): string {
  return roff(text).replace(/^(?=[.'])/, '\\&')
}

/** Text in which roff sees nothing special, in ASCII. */
function roff(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll("'", '\\(aq')
    .replaceAll('~', '\\(ti')
    .replaceAll('’', '\\(cq')
    .replaceAll('…', '\\&...')
}
