import { existsSync, globSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { MNT_DETACH, UMOUNT_NOFOLLOW, umount } from '../../snapshotter/kernel/libc.ts'
import { mountFileSystem } from '../../snapshotter/kernel/mount-file-system.ts'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { ControlGroup } from './control-group.ts'

/** Below it lie the large files of tests: layers, snapshots, databases. On a disk, since tmpfs cannot do all that. */
const DISK = '/tmp/ipdr-test'
/** Below it lie their sockets: a path of a unix socket has 107 bytes. */
const RUN = '/run/ipdr-test'

let opened = 0

/**
 * A place of a test's own, of which nothing is left when it is disposed of: no process, mount, control group, socket
 * or file. The same holds after the test was killed, once removeLeftovers has run.
 */
export class Scratch implements AsyncDisposable {
  /** For large files; on a disk. */
  readonly dir: string
  /** For sockets and what else must have a short path. */
  readonly run: string
  readonly #group: string

  private constructor(dir: string, run: string, group: string) {
    this.dir = dir
    this.run = run
    this.#group = group
  }

  /** Makes a new scratch. `name`, at most 20 characters, shows up in its paths. */
  static open(name: string): Scratch {
    // The name says who owns it, so that there is no moment in which it has no owner.
    const owner = `${process.pid}-${startOf(process.pid)}`
    const scratch = Scratch.#named(`${name}-${owner}-${opened++}`)
    scratch.#make()
    return scratch
  }

  /** Every scratch whose owner is gone. */
  static leftovers(): Scratch[] {
    const ids = new Set([DISK, RUN].flatMap((path) => (existsSync(path) ? readdirSync(path) : [])))
    return [...ids].filter((id) => !isOwned(id)).map((id) => Scratch.#named(id))
  }

  static #named(id: string): Scratch {
    return new Scratch(join(DISK, id), join(RUN, id), `/ipdr-test-${id}`)
  }

  /** A scratch within this one, which can be disposed of before it. */
  inner(name: string): Scratch {
    const path = [this.dir, this.run, this.#group].map((parent) => join(parent, name))
    const [dir = '', run = '', group = ''] = path
    const scratch = new Scratch(dir, run, group)
    scratch.#make()
    return scratch
  }

  /** Parent of the control groups of containers, as runc names it. */
  get containersGroup(): string {
    return join(this.#group, 'containers')
  }

  /** Ends the process, and all that descend from it, when the scratch is disposed of. Call it at once after the start. */
  own(pid: number): void {
    // Not in the group itself: version 2 wants processes in leaves.
    new ControlGroup(join(this.#group, 'processes')).add(pid)
  }

  /** The processes that it owns now, with all that descend from them: daemons, and what runs in containers. */
  pids(): { readonly daemons: readonly number[]; readonly containers: readonly number[] } {
    const containers = new ControlGroup(this.containersGroup).pids()
    const all = new ControlGroup(this.#group).pids()
    return { daemons: all.filter((pid) => !containers.includes(pid)), containers }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#abortFuse()
    await new ControlGroup(this.#group).end()
    for (const path of [this.run, this.dir]) unmountBelow(path)
    await removeShimSockets(this.run)
    await removeNetworkResults(this.run)
    for (const path of [this.dir, this.run]) await rm(path, { recursive: true, force: true })
  }

  /** Fails the reads that a FUSE server left unanswered: whoever waits for one cannot be killed, nor a mount be undone. */
  async #abortFuse(): Promise<void> {
    const mounts = [this.dir, this.run].flatMap((path) => listMounts(path))
    const devices = mounts.filter(({ type }) => type.startsWith('fuse')).map(({ device }) => device)
    if (devices.length === 0) return
    // The machine may not have this mounted, or may have it in many a place.
    const control = join(this.run, 'fuse-control')
    mkdirSync(control, { recursive: true })
    await mountFileSystem({ type: 'fusectl', target: control, options: [], readOnly: false })
    for (const device of new Set(devices)) {
      const abort = join(control, device.split(':')[1] ?? '', 'abort')
      if (existsSync(abort)) writeFileSync(abort, '1')
    }
    umount(control, UMOUNT_NOFOLLOW)
  }

  #make(): void {
    for (const path of [this.dir, this.run]) mkdirSync(path, { recursive: true })
  }
}

/** Removes what earlier tests left behind when they were killed, and tells how many they were. */
export async function removeLeftovers(): Promise<number> {
  const leftovers = Scratch.leftovers()
  for (const leftover of leftovers) await leftover[Symbol.asyncDispose]()
  return leftovers.length
}

/** Whether the process that opened this scratch still lives. A number alone may have been given to another since. */
function isOwned(id: string): boolean {
  const [, pid, start] = /-(\d+)-(\d+)-\d+$/.exec(id) ?? []
  return pid !== undefined && startOf(Number(pid)) === start
}

/** When a process started, in clock ticks since the machine did: field 22 of proc_pid_stat(5). */
function startOf(pid: number): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The second field stands in parentheses and may hold any character, parentheses too.
    return text.slice(text.lastIndexOf(')') + 2).split(' ')[19]
  } catch {
    return undefined
  }
}

/** Unmounts what is mounted at `path` or below, newest first. */
function unmountBelow(path: string): void {
  for (const { target } of listMounts(path).toReversed()) {
    try {
      umount(target, UMOUNT_NOFOLLOW)
    } catch {
      // Something that is about to go still holds it.
      umount(target, MNT_DETACH | UMOUNT_NOFOLLOW)
    }
  }
}

/** Shims put their sockets into one folder for all containerds, and leave them there when they are killed. */
async function removeShimSockets(run: string): Promise<void> {
  // Of a containerd in this scratch or in one within it. Not by `**`, which would search the containers' files too.
  for (const path of globSync(`${run}/{state,*/state}/io.containerd.runtime.v2.task/*/*/address`)) {
    const socket = readFileSync(path, 'utf8').replace('unix://', '')
    await rm(join('/run/containerd/s', basename(socket)), { force: true })
  }
}

/** CNI keeps what it gave to pods in one folder for all containerds, until the pod is removed. */
async function removeNetworkResults(run: string): Promise<void> {
  for (const path of globSync('/var/lib/cni/results/*')) {
    if (readFileSync(path, 'utf8').includes(`${run}/`)) await rm(path, { force: true })
  }
}
