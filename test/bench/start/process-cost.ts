import { readFileSync } from 'node:fs'

/** Clock ticks of /proc in a second: USER_HZ, 100 on every architecture that we serve. */
const TICKS_PER_SECOND = 100

/** Seconds of processors that these processes, and what they started and waited for, have used so far. Those that are gone count nothing. */
export function cpuSeconds(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + cpuTicks(readProc(pid, 'stat')), 0) / TICKS_PER_SECOND
}

/** The most memory that each of these processes ever had resident, summed, in bytes. Pages that they share count for each. */
export function peakMemoryBytes(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + highWaterBytes(readProc(pid, 'status')), 0)
}

/** utime, stime, cutime and cstime of proc_pid_stat(5), in ticks; 0 for nothing. */
export function cpuTicks(stat: string): number {
  // The second field stands in parentheses and may hold any character, parentheses too.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0)
}

/** VmHWM of proc_pid_status(5), in bytes; 0 for a process without memory of its own, which has ended or is the kernel's. */
export function highWaterBytes(status: string): number {
  const [, kibibytes] = /^VmHWM:\s*(\d+) kB$/m.exec(status) ?? []
  return Number(kibibytes ?? 0) * 1024
}

function readProc(pid: number, file: 'stat' | 'status'): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8')
  } catch {
    return ''
  }
}
