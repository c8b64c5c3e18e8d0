import { spawn } from 'node:child_process'
import { closeSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { z } from 'zod'
import { type ContainerName, containersOn } from '../snapshotter/containers-on-mounts.ts'
import {
  adoptLayerFiles,
  detachMountsBelow,
  isFuseDevice,
  isLiveConnection,
  layerFilesDevice,
  mountLayerFiles,
  unmountLayerFiles,
} from '../snapshotter/fuse-connection.ts'
import { joinControlGroup } from './control-group.ts'
import { type DescriptorStore, noDescriptorStore } from './descriptor-store.ts'
import type { Logger } from './logger.ts'

/** The descriptor number at which the keeper holds /dev/fuse: the first after stdin, stdout, stderr. */
const KEEPER_FUSE_FD = 3

/** What a FUSE connection is called in the service manager's descriptor store, before the number of its file system. */
const STORED_PREFIX = 'ipdr-fuse-'

const keeperRecord = z.strictObject({
  pid: z.number().int().positive(),
  /** Field 22 of /proc/<pid>/stat, clock ticks since boot: tells a reused pid apart. */
  startTicks: z.string(),
})

/** The one FUSE connection of this node, and how it came to us. */
export type FuseConnection = {
  readonly fd: number
  /** True: mounts of an earlier agent live on, and requests sent to it must be sent again. */
  readonly adopted: boolean
  /** The process that holds the connection open while no agent runs. */
  readonly keeperPid: number
}

type KeeperPlace = {
  /** Where the flat file system of layers is mounted. */
  readonly fuseDir: string
  /** Where lazy layers are mounted; what lies here is stale once the connection is new. */
  readonly lazyMountsDir: string
  /** Names the keeper process. */
  readonly recordPath: string
  /** Where the keeper goes, so that it outlives the container of the agent; by default it stays in the agent's control group. */
  readonly keeperGroup?: string | undefined
}

type Shared = {
  readonly log: Logger
  /** Told of containers on mounts that cannot be given another connection. */
  readonly onLost: (containers: readonly ContainerName[]) => void
  /** The service manager's; by default there is none. */
  readonly store?: DescriptorStore
}

/**
 * Adopts the FUSE connection of an agent that ran before, or makes a new one.
 *
 * The kernel ends a FUSE connection when the last descriptor of it closes, and every container that still needs bytes
 * then reads EIO for ever. So a process that does nothing and never ends early, `sleep infinity`, holds a copy of the
 * descriptor; a new agent takes it back with pidfd_getfd(2). It is started outside our session so that it outlives us,
 * and where a container is killed with all that is in its control group, outside of that too.
 * A service manager that stores descriptors holds one more, from which a keeper that was killed as well is made anew.
 * Throws KernelError if /dev/fuse cannot be opened or mounted.
 */
export function openFuseConnection(
  place: KeeperPlace,
  { log, onLost, store = noDescriptorStore }: Shared,
): FuseConnection {
  const connection =
    fromKeeper(place, log) ??
    fromStore(place, store, log) ??
    newConnection(place, { log, onLost, store })
  settleStore(connection.fd, place.fuseDir, store)
  return connection
}

function fromKeeper(place: KeeperPlace, log: Logger): FuseConnection | undefined {
  const keeperPid = runningKeeper(place.recordPath)
  if (keeperPid === undefined) return undefined
  const fd = adoptLayerFiles({ pid: keeperPid, fd: KEEPER_FUSE_FD, target: place.fuseDir })
  if (fd === undefined) {
    endKeeper(place.recordPath)
    return undefined
  }
  log.info({ keeperPid }, 'took over the FUSE connection of the agent before; its mounts live on')
  return { fd, adopted: true, keeperPid }
}

/** The name says for which mount it is. That of a mount which is gone may have been given away again, but then its connection has ended. */
function fromStore(
  place: KeeperPlace,
  store: DescriptorStore,
  log: Logger,
): FuseConnection | undefined {
  const name = storedName(place.fuseDir)
  const stored = store.held.find((held) => held.name === name && isLiveConnection(held.fd))
  if (stored === undefined) return undefined
  const keeperPid = startKeeper(stored.fd, place, log)
  log.info(
    { keeperPid },
    'took the FUSE connection back from the service manager, since its keeper is gone; its mounts live on',
  )
  return { fd: stored.fd, adopted: true, keeperPid }
}

function newConnection(
  place: KeeperPlace,
  { log, onLost, store }: Required<Shared>,
): FuseConnection {
  // A version that made room for this one may have stored what was not handed to us.
  const before = storedName(place.fuseDir)
  if (before !== undefined) store.forget(before)
  const detached = detachMountsBelow([place.lazyMountsDir, place.fuseDir], 'unmendable')
  for (const target of detached) {
    log.warn(
      { target },
      'detached a mount whose FUSE connection is gone; pods that still use it must be restarted',
    )
  }
  if (detached.length > 0) onLost(containersOn((lowerDir) => detached.includes(lowerDir)))
  mkdirSync(place.fuseDir, { recursive: true })
  const fd = mountLayerFiles(place.fuseDir)
  return { fd, adopted: false, keeperPid: startKeeper(fd, place, log) }
}

/** Starts another keeper if somebody has killed the one there was: for a process that is about to let go of its own descriptor. */
export function ensureKeeper({ fd }: FuseConnection, place: KeeperPlace, log: Logger): void {
  if (runningKeeper(place.recordPath) !== undefined) return
  log.warn({}, 'the FUSE keeper is gone: starting another one')
  startKeeper(fd, place, log)
}

/** Has the store hold this connection alone: one that we do not serve would make its readers wait for ever. */
function settleStore(fd: number, fuseDir: string, store: DescriptorStore): void {
  const name = storedName(fuseDir)
  // All of a name go at once, and a stale one may have ours.
  const isOurs = (held: { readonly fd: number; readonly name: string }): boolean =>
    held.name === name && isLiveConnection(held.fd)
  for (const held of store.held) {
    if (held.fd === fd || !held.name.startsWith(STORED_PREFIX)) continue
    if (!isOurs(held)) store.forget(held.name)
    // The number is a stranger's word: it may be that of a descriptor which this process has opened itself.
    if (isFuseDevice(held.fd)) closeSync(held.fd)
  }
  if (name !== undefined) store.keep({ name, fd })
}

function storedName(fuseDir: string): string | undefined {
  // A colon parts names where they are handed back.
  const device = layerFilesDevice(fuseDir)?.replace(':', '-')
  return device === undefined ? undefined : `${STORED_PREFIX}${device}`
}

function startKeeper(fd: number, place: KeeperPlace, log: Logger): number {
  const keeper = spawn('sleep', ['infinity'], {
    detached: true,
    cwd: '/',
    argv0: 'ipdr-fuse-keeper',
    env: {},
    stdio: ['ignore', 'ignore', 'ignore', fd],
  })
  keeper.unref()
  if (keeper.pid === undefined) throw new Error('cannot start the FUSE keeper: sleep(1) is missing')
  if (place.keeperGroup !== undefined) moveKeeper(keeper.pid, place.keeperGroup, log)
  writeRecord(place.recordPath, keeper.pid)
  return keeper.pid
}

/**
 * Unmounts everything and ends the keeper: for a node on which no snapshot names a lazy layer any more. The kernel has the
 * last word: false, and the keeper goes on, if something still stands on one, such as a mount made by hand whose view
 * containerd has collected as garbage.
 */
export function closeFuseConnection(
  place: KeeperPlace,
  store: DescriptorStore = noDescriptorStore,
): boolean {
  const name = storedName(place.fuseDir)
  detachMountsBelow([place.lazyMountsDir], 'all')
  if (!unmountLayerFiles(place.fuseDir)) return false
  endKeeper(place.recordPath)
  if (name !== undefined) store.forget(name)
  return true
}

/** A keeper that ends with its container is worse than one that does not, and better than none. */
function moveKeeper(pid: number, group: string, log: Logger): void {
  try {
    joinControlGroup(pid, group)
  } catch (error) {
    log.warn(
      { err: error, group },
      "the FUSE keeper stays in the agent's control group, and ends with it: give the agent the node's /sys/fs/cgroup, to write",
    )
  }
}

function writeRecord(path: string, pid: number): void {
  const startTicks = processStartTicks(pid)
  if (startTicks === undefined) throw new Error(`the FUSE keeper, process ${pid}, ended at once`)
  writeFileSync(`${path}.new`, JSON.stringify({ pid, startTicks }))
  renameSync(`${path}.new`, path)
}

function runningKeeper(recordPath: string): number | undefined {
  let text: string
  try {
    text = readFileSync(recordPath, 'utf8')
  } catch {
    return undefined // No agent ran before on this boot: runDir does not survive one.
  }
  const record = keeperRecord.safeParse(parsedJson(text))
  if (!record.success) return undefined
  return processStartTicks(record.data.pid) === record.data.startTicks ? record.data.pid : undefined
}

function parsedJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function endKeeper(recordPath: string): void {
  const pid = runningKeeper(recordPath)
  if (pid !== undefined) process.kill(pid, 'SIGKILL')
  rmSync(recordPath, { force: true })
}

/** Start time of a process in clock ticks since boot (proc_pid_stat(5), field 22); undefined if it does not run. */
function processStartTicks(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    // The name in field 2 may hold spaces and brackets: count fields after the last one.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    // A zombie, which a container's first process may never collect, holds no descriptor any more.
    return fields[0] === 'Z' ? undefined : fields[19]
  } catch {
    return undefined
  }
}
