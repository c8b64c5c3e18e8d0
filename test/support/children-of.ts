import { readFileSync } from 'node:fs'

/** Process numbers of those that the main thread of a process has started, as Node does: proc_pid_task(5). Throws if it has ended. */
export function childrenOf(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
  return children
    .split(' ')
    .filter((child) => child !== '')
    .map(Number)
}
