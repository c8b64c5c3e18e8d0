import { readdirSync, readFileSync } from 'node:fs'
import { getPriority, setPriority } from 'node:os'

/** The nice value of threads that page faults wait for; sched(7). */
const URGENT_NICE = -10

/**
 * Threads that others wait for: V8's, by whoever collects garbage; libuv's, since page faults need what they do, and since pthread_cond_signal, by
 * which they get their work, waits for the one that was woken before to have run (glibc before 2.41).
 */
const HELPER_NAMES: readonly string[] = ['V8Worker', 'libuv-worker']

/**
 * Has the calling thread, V8's own, libuv's, and those that it starts from now on, run before what waits for nobody. Returns whether the
 * kernel let it: it takes CAP_SYS_NICE. In Linux a nice value belongs to a thread, and 0 is the one that asks; setpriority(2).
 */
export function takePrecedence(): boolean {
  try {
    setPriority(0, Math.min(URGENT_NICE, getPriority(0)))
    for (const thread of helperThreads()) setPriority(thread, getPriority(0))
    return true
  } catch {
    return false
  }
}

/**
 * Has the calling thread, which was started by one with precedence, run as every other process does. Returns what takes it back, to be
 * called before somebody waits for its end.
 */
export function givePrecedence(): () => void {
  const inherited = getPriority(0)
  if (inherited >= 0) return () => {}
  setPriority(0, 0)
  return () => setPriority(0, inherited)
}

function helperThreads(): number[] {
  return readdirSync('/proc/self/task')
    .filter((thread) =>
      HELPER_NAMES.includes(readFileSync(`/proc/self/task/${thread}/comm`, 'utf8').trim()),
    )
    .map(Number)
}
