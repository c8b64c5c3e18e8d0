import { readFileSync } from 'node:fs'

const MiB = 1024 ** 2

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

/** What of a process is resident: all of it, of that its own and that of files, and the most that it ever was. */
export type ResidentMemory = Readonly<
  Record<'totalMiB' | 'anonMiB' | 'fileMiB' | 'peakMiB', number>
>

/** As the kernel counts it: proc_pid_status(5). 0 for a process that has ended. */
export function residentMemory(pid: number): ResidentMemory {
  const status = readProc(pid, 'status')
  return {
    totalMiB: fieldBytes(status, 'VmRSS') / MiB,
    anonMiB: fieldBytes(status, 'RssAnon') / MiB,
    fileMiB: fieldBytes(status, 'RssFile') / MiB,
    peakMiB: highWaterBytes(status) / MiB,
  }
}

/** VmHWM of proc_pid_status(5), in bytes; 0 for a process without memory of its own, which has ended or is the kernel's. */
export function highWaterBytes(status: string): number {
  return fieldBytes(status, 'VmHWM')
}

function fieldBytes(status: string, name: string): number {
  const [, kibibytes] = new RegExp(`^${name}:\\s*(\\d+) kB$`, 'm').exec(status) ?? []
  return Number(kibibytes ?? 0) * 1024
}

function readProc(pid: number, file: 'stat' | 'status'): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8')
  } catch {
    return ''
  }
}
