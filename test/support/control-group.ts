import {
  type Dirent,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs'
import { rmdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'

const ROOT = '/sys/fs/cgroup'

/** How long killed processes may take to be gone, in ms. 20 s: a busy machine takes 1 s to unmap a large one. */
const END_DEADLINE_MS = 20_000

/**
 * Processes that belong together with all that descend from them, however they detach themselves. Found without a look at
 * the processes: what /proc tells of one that waits for a file of a stalled FUSE server makes its reader wait as well.
 */
export class ControlGroup {
  /** As runc names it, the same in every hierarchy: `/ipdr-test-1/processes`. */
  readonly path: string

  constructor(path: string) {
    this.path = path
  }

  /** Moves a process, and with it what it starts from now on, into the group. One that has ended is no error. */
  add(pid: number): void {
    // One hierarchy will do to find it again: in version 1 that of pids, where no limit applies.
    const hierarchy = existsSync(join(ROOT, 'pids/cgroup.procs')) ? join(ROOT, 'pids') : ROOT
    const folder = join(hierarchy, this.path)
    mkdirSync(folder, { recursive: true })
    try {
      writeFileSync(join(folder, 'cgroup.procs'), `${pid}`)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
  }

  /** Makes the group in every hierarchy, with all that the machine has to give: a kubelet wants that of its pods to be there. */
  make(): void {
    for (const hierarchy of hierarchies()) makeFolder(join(hierarchy, this.path), hierarchy)
  }

  /** Moves a process into the group in every hierarchy: groups whose names it does not begin with a slash are below this one. */
  take(pid: number): void {
    this.make()
    for (const hierarchy of hierarchies()) {
      writeFileSync(join(hierarchy, this.path, 'cgroup.procs'), `${pid}`)
    }
  }

  /** The processes in the group and in those below it. */
  pids(): number[] {
    const lists = this.#folders().map((path) => readIfThere(join(path, 'cgroup.procs')))
    // In version 1 a process is in one group of each hierarchy.
    return [...new Set(lists.flatMap((list) => list.split('\n').filter(Boolean).map(Number)))]
  }

  /** Kills every process of the group, and removes it. Rejects if one is still there after 20 s. */
  async end(): Promise<void> {
    const deadline = Date.now() + END_DEADLINE_MS
    // Again until none is left: one that is about to be killed may start another.
    for (let pids = this.pids(); pids.length > 0; pids = this.pids()) {
      for (const pid of pids) kill(pid)
      if (Date.now() > deadline) {
        const left = pids.map(describeStuck).join('; ')
        throw new Error(`still there ${END_DEADLINE_MS} ms after SIGKILL: ${left}`)
      }
      await setTimeout(5)
    }
    // Deepest first: a group with groups below it cannot be removed.
    for (const folder of this.#folders().toReversed()) await rmdir(folder)
  }

  /** The group's folders and those below: one tree in version 2, one for each controller in version 1. */
  #folders(): string[] {
    const hierarchies = [ROOT, ...readdirSync(ROOT).map((name) => join(ROOT, name))]
    return hierarchies
      .map((hierarchy) => join(hierarchy, this.path))
      .filter((tree) => existsSync(tree))
      .flatMap(withSubfolders)
  }
}

/** What the kernel does for a process, of which nothing waits for its memory: "7 (cat, D) in request_wait_answer, fuse_simple_request, …". */
function describeStuck(pid: number): string {
  const read = (name: string): string => {
    try {
      return readFileSync(`/proc/${pid}/${name}`, 'utf8')
    } catch {
      return ''
    }
  }
  const [, state = '?'] = /\) (\S)/.exec(read('stat')) ?? []
  const calls = read('stack')
    .matchAll(/\] ([^+]+)/g)
    .map(([, name]) => name)
  return `${pid} (${read('comm').trim()}, ${state}) in ${[...calls].slice(0, 12).join(', ')}`
}

/** A container's group goes with it, also between two looks at it; then nothing is in it. */
function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (!isGone(error)) throw error
    return ''
  }
}

/** ENODEV: the folder went while the file was open. */
function isGone(error: unknown): boolean {
  return ['ENOENT', 'ENODEV'].includes((error as NodeJS.ErrnoException).code ?? '')
}

function withSubfolders(folder: string): string[] {
  const subfolders = entriesOf(folder)
    .filter((entry) => entry.isDirectory())
    .map((entry) => join(folder, entry.name))
  return [folder, ...subfolders.flatMap(withSubfolders)]
}

function entriesOf(folder: string): Dirent[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
  } catch (error) {
    if (!isGone(error)) throw error
    return []
  }
}

/** One in version 2, one for each controller in version 1. */
function hierarchies(): string[] {
  const isUnified = existsSync(join(ROOT, 'cgroup.controllers'))
  return isUnified ? [ROOT] : readdirSync(ROOT).map((name) => join(ROOT, name))
}

function makeFolder(folder: string, hierarchy: string): void {
  const parent = dirname(folder)
  if (parent !== hierarchy) makeFolder(parent, hierarchy)
  const controllers = join(parent, 'cgroup.controllers')
  if (existsSync(controllers)) {
    // In version 2 a group has the controllers that its parent passes on.
    const names = readFileSync(controllers, 'utf8').trim().split(' ').filter(Boolean)
    for (const name of names) writeFileSync(join(parent, 'cgroup.subtree_control'), `+${name}`)
  }
  mkdirSync(folder, { recursive: true })
  // In version 1 a new group has no processors and no memory, and takes no process.
  for (const set of ['cpuset.cpus', 'cpuset.mems']) {
    const [own, above] = [join(folder, set), join(parent, set)]
    if (existsSync(controllers) || !existsSync(own)) continue
    if (readFileSync(own, 'utf8').trim() === '') writeFileSync(own, readFileSync(above))
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
