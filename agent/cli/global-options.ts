import type { CommandOption } from './command.ts'
import type { OutputFormat } from './output.ts'
import type { ProgressStyle } from './progress.ts'

/** Where the agent's admin socket is unless the agent is configured otherwise (agent/config.ts, `admin.socketPath`). */
const AGENT_SOCKET = '/run/ipdr-agent/admin.sock'

/** Values of the options that every command has. */
export type GlobalValues = {
  readonly agent: string
  readonly output: OutputFormat
  readonly progress: ProgressStyle | 'auto'
  readonly quiet: boolean
}

/** Options that every command has. */
export const GLOBAL_OPTIONS: Readonly<Record<keyof GlobalValues, CommandOption>> = {
  agent: {
    type: 'string',
    requiresArg: true,
    default: AGENT_SOCKET,
    describe: 'Unix socket of the agent on this node',
    valueName: 'SOCKET',
    env: 'IPDR_AGENT',
  },
  output: {
    alias: 'o',
    choices: ['text', 'json'],
    default: 'text',
    describe: 'Text for people, or one JSON document: sizes in bytes, times in ms',
    valueName: 'FORMAT',
  },
  progress: {
    choices: ['auto', 'bars', 'lines', 'json', 'none'],
    default: 'auto',
    describe:
      'How to show progress on standard error; auto: bars on a terminal, else a line every 3 s',
    valueName: 'STYLE',
  },
  quiet: {
    alias: 'q',
    type: 'boolean',
    default: false,
    describe: 'No progress, and of the answer only what a script wants',
  },
}
