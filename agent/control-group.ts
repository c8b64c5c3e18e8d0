import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** Version 2 has one tree here, version 1 one for each controller below, and some machines have both. */
const HIERARCHIES = '/sys/fs/cgroup'

/** What a new group of version 1's cpuset has to be told before a process may enter it. */
const CPUSET_FILES = ['cpuset.cpus', 'cpuset.mems']

/**
 * Moves a process into the control group of this name, which is made if it is not there, in every hierarchy of the node. Throws an
 * error of the system if the node's control groups cannot be written, as in a container that does not have them.
 */
export function joinControlGroup(pid: number, group: string): void {
  const below = readdirSync(HIERARCHIES).map((name) => join(HIERARCHIES, name))
  const roots = [HIERARCHIES, ...below].filter((path) => isHierarchy(path, below))
  for (const root of roots) {
    const folder = makeGroup(root, join(root, group))
    writeFileSync(join(folder, 'cgroup.procs'), String(pid))
  }
}

/** Groups of version 2 lie below its root too, and are not hierarchies. */
function isHierarchy(path: string, below: readonly string[]): boolean {
  if (!existsSync(join(path, 'cgroup.procs'))) return false
  return !below.includes(path) || !existsSync(join(HIERARCHIES, 'cgroup.procs'))
}

function makeGroup(root: string, folder: string): string {
  if (folder === root || existsSync(folder)) return folder
  const above = makeGroup(root, dirname(folder))
  mkdirSync(folder)
  for (const name of CPUSET_FILES) {
    const [own, inherited] = [join(folder, name), join(above, name)]
    // Version 2 has them only where the controller is on, never at its root, and needs nothing of it.
    if (!existsSync(own) || !existsSync(inherited)) continue
    const value = readFileSync(inherited, 'utf8').trim()
    if (value !== '') writeFileSync(own, value)
  }
  return folder
}
