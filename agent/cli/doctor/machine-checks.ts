import { diskOf, probeKernel } from '../../../snapshotter/probe-node.ts'
import type { Config } from '../../config.ts'
import { formatBytes } from '../quantity.ts'
import { type Check, type Finding, failure, notChecked, ok, warning } from './finding.ts'
import type { RunningAgent } from './running-agent.ts'

/** What must stay free for metadata images and databases while the store is full, in bytes. 1 GiB: 2,000 layers of 0.5 MiB. */
const BESIDE_STORE_BYTES = 1024 ** 3

/** A layer takes some five files. 10,000 inodes: 2,000 layers. */
const INODES_MIN = 10_000

/** Privileges, kernel and disk. */
export function machineChecks(config: Config, agent: RunningAgent): readonly Check[] {
  return [
    { name: 'privileges', look: async () => privileges() },
    { name: 'kernel', look: (signal) => kernel(config, agent, signal) },
    { name: 'file system', look: () => fileSystem(config) },
    { name: 'space', look: (signal) => space(config, agent, signal) },
  ]
}

function privileges(): Finding {
  const uid = process.getuid?.()
  if (uid === 0) return ok('this is root')
  return failure(
    `this is user ${uid}, who sees little of a node`,
    'Run ipdr doctor as root, with sudo.',
  )
}

async function kernel(config: Config, agent: RunningAgent, signal: AbortSignal): Promise<Finding> {
  const status = await agent.status(signal)
  if (status !== undefined) return ofReport({ rung: status.rung, reason: status.rungReason })
  if (process.getuid?.() !== 0) return notChecked('only root can mount to see what the kernel does')
  const { folder } = await diskOf(config.root)
  return ofReport(await probeKernel(folder))
}

/** Of what was probed here, or of what the agent said of its own probe. */
function ofReport({ rung, reason }: { readonly rung: string; readonly reason: string }): Finding {
  if (rung === 'erofs-file') return ok(`it mounts layers straight from files (${rung})`)
  if (rung === 'erofs-loop') {
    return warning(
      `it mounts layers over loop devices only: ${reason}`,
      'It works; a kernel from 6.12 on with CONFIG_EROFS_FS_BACKED_BY_FILE reads small files up to 1.4 times as fast.',
    )
  }
  return failure(
    `it cannot mount layers lazily: ${reason}`,
    'Load the modules erofs, fuse, overlay and loop (modprobe erofs fuse overlay loop), or boot a kernel that has them.',
  )
}

async function fileSystem({ root }: Config): Promise<Finding> {
  const { type, backsErofs, folder } = await diskOf(root)
  const where = folder === root ? root : `${root}, which does not exist yet, by ${folder}`
  if (backsErofs) return ok(`${where} is on ${type}`)
  return failure(
    `${where} is on ${type}, from which EROFS mounts nothing`,
    'Set `root` to a folder on ext4, xfs or btrfs.',
  )
}

async function space(config: Config, agent: RunningAgent, signal: AbortSignal): Promise<Finding> {
  const { freeBytes, freeInodes, folder } = await diskOf(config.root)
  const status = await agent.status(signal)
  const kept = Number(status?.storeBytes ?? 0)
  const grows = Math.max(0, config.store.bytesMax - kept)
  const growth = `the layers take ${formatBytes(kept)} and may take ${formatBytes(config.store.bytesMax)}`
  if (freeInodes >= 0 && freeInodes < INODES_MIN) {
    return failure(
      `${folder} has ${freeInodes} inodes free`,
      'Remove files there, or move `root` to a file system made with more inodes.',
    )
  }
  if (freeBytes < Math.min(grows, BESIDE_STORE_BYTES)) {
    return failure(
      `${formatBytes(freeBytes)} are free in ${folder}: ${growth}`,
      'Free space there (ipdr cache gc removes what no image needs), or put `root` on another disk.',
    )
  }
  if (freeBytes < grows + BESIDE_STORE_BYTES) {
    return warning(
      `${formatBytes(freeBytes)} are free in ${folder}: ${growth}, so the disk is full before the store is`,
      `Set \`store.bytesMax\` to ${Math.max(0, Math.floor(kept + freeBytes - BESIDE_STORE_BYTES))} or less, or free space.`,
    )
  }
  return ok(`${formatBytes(freeBytes)} are free in ${folder}: ${growth}`)
}
