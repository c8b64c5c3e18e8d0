import { readFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { connect } from '../proto/client.ts'
import { agentContract } from '../proto/load.ts'
import type { StatusResponse__Output } from '../proto/types/ipdr/v1/StatusResponse.ts'
import { CodedError } from '../snapshotter/errors.ts'
import type { Config } from './config.ts'
import { version } from './version.ts'

/** How long the next version may take to be there, in ms. 5 min: the check, the time of its trial, and that of the one that comes back. */
const UPGRADE_MS = 300_000

/** How long one question waits, and between two of them, in ms. */
const ASK_MS = 5_000
const PAUSE_MS = 50

/**
 * Has the running agent make room for the version that its program's name leads to by now, which this one is, and waits until that
 * answers. Resolves to a sentence. Rejects with CodedError: UNAVAILABLE (no agent runs), FAILED_PRECONDITION (it refused, or the
 * version before came back), DEADLINE_EXCEEDED.
 */
export async function upgrade({ admin }: Config, signal: AbortSignal): Promise<string> {
  const before = await status(admin.socketPath, signal)
  if (before === undefined) {
    throw new CodedError(
      'UNAVAILABLE',
      `no agent answers at ${admin.socketPath}, so there is nothing to upgrade: start it`,
    )
  }
  const { supervisorPid } = before
  if (!isAgent(supervisorPid)) {
    throw new CodedError(
      'FAILED_PRECONDITION',
      `the agent at ${admin.socketPath} (${before.version}) does not know upgrades: restart it`,
    )
  }
  const startedMs = performance.now()
  const deadline = startedMs + UPGRADE_MS
  process.kill(supervisorPid, 'SIGHUP')
  while (performance.now() < deadline) {
    await setTimeout(PAUSE_MS, undefined, { signal })
    const now = await status(admin.socketPath, signal)
    if (now === undefined || now.pid === before.pid) continue
    const tookS = ((performance.now() - startedMs) / 1000).toFixed(1)
    if (now.version === version) {
      return `ipdr-agent ${now.version}, pid ${now.supervisorPid}, took the place of ${before.version} in ${tookS} s`
    }
    throw new CodedError(
      'FAILED_PRECONDITION',
      `ipdr-agent ${now.version} is there instead of ${version}: either its worker did not come up and the version before is back, or the agent was started by a name that leads elsewhere; see its log (journalctl -u ipdr-agent)`,
    )
  }
  throw new CodedError(
    'DEADLINE_EXCEEDED',
    `the agent did not make room in ${UPGRADE_MS / 1000} s: it refuses a configuration or program that does not start, and its log says why (journalctl -u ipdr-agent)`,
  )
}

async function status(
  socketPath: string,
  signal: AbortSignal,
): Promise<StatusResponse__Output | undefined> {
  using agent = connect(agentContract(), socketPath)
  try {
    return await agent.calls.Status(
      {},
      { signal: AbortSignal.any([signal, AbortSignal.timeout(ASK_MS)]) },
    )
  } catch {
    signal.throwIfAborted()
    return undefined
  }
}

/** Whether a process is what it is thought to be before a signal is sent to it. */
function isAgent(pid: number): boolean {
  if (pid <= 1) return false
  try {
    // As it is built, and as a source.
    return /ipdr-agent\.js|agent\/main\.ts/.test(readFileSync(`/proc/${pid}/cmdline`, 'utf8'))
  } catch {
    return false
  }
}
