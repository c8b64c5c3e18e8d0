import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { AgentProcess } from '../support/agent.ts'
import type { Containerd } from '../support/containerd.ts'

/** The controller that shares the processors, of version 1 of control groups. */
const CPU = '/sys/fs/cgroup/cpu'

/** What a kubelet gives all pods together that ask for nothing (cm/qos_container_manager: MinShares). */
const BEST_EFFORT_SHARES = 2
/** What systemd gives a service that says nothing. */
const SERVICE_SHARES = 1024
/** `CPUWeight=1000` of our unit, ten times that. */
const AGENT_SHARES = 10_240

/**
 * Puts an agent and its containerd where a node has them, each in a control group as a service, and pods below the one of those that ask for
 * nothing; otherwise all that runc and the shims do would be the agent's equal. Tells how, or that this machine cannot.
 */
export function groupAsOnNode(agent: AgentProcess, containerd: Containerd): string {
  if (!existsSync(join(CPU, 'cpu.shares')) || containerd.pid === undefined) {
    return 'all in one control group'
  }
  const node = dirname(containerd.cgroup)
  // Against what plays the world outside on the same processors.
  giveShares(node, AGENT_SHARES)
  giveShares(containerd.cgroup, BEST_EFFORT_SHARES)
  giveShares(`${node}/containerd`, SERVICE_SHARES, [containerd.pid])
  giveShares(`${node}/agent`, AGENT_SHARES, [agent.pid, agent.workerPid])
  return 'control groups as on a node'
}

function giveShares(path: string, shares: number, pids: readonly number[] = []): void {
  const folder = join(CPU, path)
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'cpu.shares'), `${shares}`)
  for (const pid of pids) writeFileSync(join(folder, 'cgroup.procs'), `${pid}`)
}
