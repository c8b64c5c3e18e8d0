import { readdirSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { connect } from '../../proto/client.ts'
import { snapshotsContract } from '../../proto/load.ts'
import { listLoops } from '../../snapshotter/kernel/loop-device.ts'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import type { LazyNode } from '../support/lazy-node.ts'

/** What containerd, the agent and the kernel each say there is, so that it can be compared. */
export type Views = {
  /** Committed and active snapshots that containerd lists of us. */
  readonly containerdSnapshots: readonly string[]
  /** And those that we list, by the keys that they have there. */
  readonly ourSnapshots: readonly string[]
  /** Directories that snapshots have, and that are there. */
  readonly directories: number
  /** Mounts of layers that the agent tells of, and that the kernel has. */
  readonly agentMounts: readonly string[]
  readonly kernelMounts: readonly string[]
  /** Layers that the agent tells of, and that have a folder. */
  readonly agentLayers: number
  readonly layerFolders: number
  /** FUSE file systems of this agent. */
  readonly fuseMounts: number
  /** Loop devices of this agent that lead to a FUSE connection which is gone. */
  readonly deadLoops: readonly string[]
  /** Loop devices of this machine that are attached to files of this agent. */
  readonly loops: number
  /** Open descriptors of the data worker, by what they are. */
  readonly descriptors: ReadonlyMap<string, number>
}

export async function viewsOf(node: LazyNode): Promise<Views> {
  const { agent, containerd } = node
  const signal = AbortSignal.timeout(20_000)
  using admin = agent.admin()
  using snapshots = connect(snapshotsContract(), agent.snapshotterSocket, {
    'containerd-namespace': 'k8s.io',
  })
  const listed = ['-n', 'k8s.io', 'snapshots', '--snapshotter', containerd.snapshotter, 'ls']
  await collectGarbage(node)
  const lines = (await containerd.ctr(listed)).trim().split('\n').slice(1)
  const ours: string[] = []
  for await (const { info } of snapshots.calls.List({ snapshotter: '', filters: [] }, { signal })) {
    ours.push(...info.map(({ name }) => name.slice(name.lastIndexOf('/') + 1)))
  }
  const { mounts } = await admin.calls.Status({}, { signal })
  const { layers } = await admin.calls.ListLayers({}, { signal })
  const m = join(agent.root, 'm')
  const files = join(agent.runDir, 'files')
  const loops = listLoops('ipdr:').filter(
    ({ backingPath }) =>
      !backingPath.startsWith('/') ||
      backingPath.includes(agent.root) ||
      backingPath.startsWith(files),
  )
  return {
    containerdSnapshots: lines.map((line) => line.split(/\s+/)[0] ?? '').toSorted(),
    ourSnapshots: ours.toSorted(),
    directories: readdirSync(join(agent.root, 'snapshots')).length,
    agentMounts: mounts.map(({ target }) => target).toSorted(),
    kernelMounts: listMounts(m)
      .map(({ target }) => target)
      .toSorted(),
    agentLayers: layers.length,
    layerFolders: readdirSync(join(agent.root, 'layers')).length,
    fuseMounts: listMounts(files).length,
    deadLoops: loops.map(({ backingPath }) => backingPath).filter(isDead),
    loops: loops.length,
    descriptors: descriptorsOf(agent.workerPid),
  }
}

/** Ends the leases of pulls that were broken off: they keep what was pulled for a day. */
export async function removeLeases({ containerd }: LazyNode): Promise<void> {
  const leases = ['-n', 'k8s.io', 'leases']
  const listed = (await containerd.ctr([...leases, 'ls', '-q'])).trim().split('\n')
  for (const lease of listed) if (lease !== '') await containerd.ctr([...leases, 'delete', lease])
}

/**
 * Has containerd forget what nothing refers to, and waits for it: it does so by itself after some hundred changes, and looks for what
 * it could not remove from a snapshotter, since that was down, when it has removed another of its snapshots.
 */
async function collectGarbage({ containerd }: LazyNode): Promise<void> {
  const snapshots = ['-n', 'k8s.io', 'snapshots', '--snapshotter', containerd.snapshotter]
  await containerd.ctr([...snapshots, 'prepare', 'faults'])
  await containerd.ctr([...snapshots, 'rm', 'faults'])
  const leases = ['-n', 'k8s.io', 'leases']
  await containerd.ctr([...leases, 'create', '--id', 'faults'])
  await containerd.ctr([...leases, 'delete', '--sync', 'faults'])
}

/** A file below a mount that is no longer in the tree has the path that it has there. */
function isDead(backingPath: string): boolean {
  return /^\/\d+$/.test(backingPath) || backingPath.endsWith('(deleted)')
}

/** `socket:[123]` → `socket`; paths as they are. */
function descriptorsOf(pid: number): Map<string, number> {
  const found = new Map<string, number>()
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    let target: string
    try {
      target = readlinkSync(`/proc/${pid}/fd/${fd}`)
    } catch {
      continue
    }
    const kind = target.startsWith('/') ? target : target.replace(/:.*/, '')
    found.set(kind, (found.get(kind) ?? 0) + 1)
  }
  return found
}
