import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { Output } from '../../agent/cli/output.ts'

/** The command line, as a user has it. */
export const IPDR: string = join(import.meta.dirname, '../../agent/cli/bin/ipdr')

/** Runs `ipdr` as a person would, at the agent with this admin socket: the command and its answer show on standard output. */
export async function showIpdr(
  agentSocket: string,
  args: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted()
  const output = new Output({ format: 'text', quiet: false, stream: process.stdout })
  process.stdout.write(`\n${output.style('bold', `$ ipdr ${args.join(' ')}`)}\n`)
  const child = spawn(IPDR, args, {
    env: { ...process.env, IPDR_AGENT: agentSocket },
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  const [code] = (await once(child, 'close')) as [number | null]
  process.stdout.write('\n')
  signal.throwIfAborted()
  if (code !== 0) throw new Error(`ipdr ${args.join(' ')}: exit code ${code}`)
}
