import { existsSync } from 'node:fs'
import { type Command, defineCommand } from '../command.ts'
import type { CheckedFinding } from '../doctor/examine-node.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure, plain } from '../failure.ts'
import type { Output } from '../output.ts'
import { count } from '../quantity.ts'

/** Where the systemd unit has its configuration. */
const CONFIG_PATH = '/etc/ipdr-agent/config.json'

/** How long one check may take, in seconds, unless --timeout says otherwise. 10: an answer that comes later would be too late for a pod as well. */
const CHECK_S = 10

/** And at most: an hour. */
const LONGEST_S = 3_600

/** `ipdr doctor` */
export const doctor: Command = defineCommand({
  name: 'doctor',
  usage: '',
  summary: 'Check this node, and say what to change',
  description: [
    'Looks at everything that a pod needs to start from IPFS: the configuration, privileges, the kernel, the file system and its space; the agent and its sockets; containerd, its plugin, snapshotter and hosts.toml; gateways, peers and other nodes; keys, certificates and credentials. It changes nothing, and no check takes longer than --timeout.',
    'Each finding is ok, a warning (it works, but not well, or not for long), a failure (it does not work), or not checked. It fails with 1 if there is a failure; advice stands under each finding.',
  ],
  args: {},
  options: {
    config: {
      type: 'string',
      requiresArg: true,
      describe: `The agent's configuration; ${CONFIG_PATH} unless given, and the defaults if there is none`,
      valueName: 'FILE',
    },
    'certs-dir': {
      type: 'string',
      default: '/etc/containerd/certs.d',
      requiresArg: true,
      describe: "Folder of containerd's hosts.toml files, where containerd (2) does not tell it",
      valueName: 'DIR',
    },
    timeout: {
      type: 'number',
      default: CHECK_S,
      requiresArg: true,
      describe: 'Seconds that one check may take; more for a machine that is very slow or busy',
      valueName: 'SECONDS',
    },
  },
  examples: [
    ['ipdr doctor', 'after installing, and whenever a pod does not start'],
    ['ipdr doctor -o json | jq \'.findings[] | select(.state == "failure")\'', 'for a script'],
  ],
  seeAlso: ['ipdr status', 'ipdr waited', 'ipdr-agent(8)'],
  async run({ config: path, 'certs-dir': certsDir, timeout }, { output, signal }) {
    if (!(timeout > 0 && timeout <= LONGEST_S)) {
      const problem = `--timeout must be a number of seconds above 0, ${LONGEST_S} at most`
      throw new CommandFailure(EXIT_CODES.usage, problem)
    }
    const { parseConfig, readConfig } = await import('../../config.ts')
    const { examineNode } = await import('../doctor/examine-node.ts')
    const isThere = path !== undefined || existsSync(CONFIG_PATH)
    // A wrong one ends the command: all that follows would be about another node.
    const config = isThere ? readConfig(path ?? CONFIG_PATH) : parseConfig({})
    const findings = [
      configFinding(path, isThere),
      ...(await examineNode(config, { certsDir, checkMs: timeout * 1000 }, signal)),
    ]
    const of = (state: CheckedFinding['state']): number =>
      findings.filter((finding) => finding.state === state).length
    output.answer({ findings }, () => {
      const shown = output.quiet
        ? findings.filter(({ state }) => state === 'warning' || state === 'failure')
        : findings
      const lines = shown.map((finding) => describe(finding, output))
      const sum = `${of('ok')} ok, ${count(of('warning'), 'warning')}, ${count(of('failure'), 'failure')}, ${of('not checked')} not checked`
      return [...lines, ...(output.quiet ? [] : [sum])].join('\n')
    })
    if (of('failure') > 0) {
      throw new CommandFailure(
        EXIT_CODES.failure,
        `${count(of('failure'), 'check')} failed`,
        'Begin with the first of them: others may follow from it.',
      )
    }
  },
})

function configFinding(path: string | undefined, isThere: boolean): CheckedFinding {
  const found = isThere
    ? `${path ?? CONFIG_PATH} is fine`
    : `there is no ${CONFIG_PATH}: what follows is about an agent with the defaults`
  return isThere
    ? { check: 'configuration', state: 'ok', found }
    : { check: 'configuration', state: 'warning', found, advice: 'Name the file with --config.' }
}

const STYLES = {
  ok: 'green',
  warning: 'yellow',
  failure: 'red',
  'not checked': 'dim',
} as const

const STATE_WIDTH = Math.max(...Object.keys(STYLES).map((state) => state.length))
const CHECK_WIDTH = 'default snapshotter'.length

function describe({ check, state, found, advice }: CheckedFinding, output: Output): string {
  const head = output.style(STYLES[state], state.padEnd(STATE_WIDTH))
  const line = `${head}  ${check.padEnd(CHECK_WIDTH)}  ${plain(found)}`
  if (advice === undefined) return line
  return `${line}\n${' '.repeat(STATE_WIDTH + CHECK_WIDTH + 4)}${plain(advice)}`
}
