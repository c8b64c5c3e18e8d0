import { readdirSync, readFileSync } from 'node:fs'
import { getPriority, setPriority } from 'node:os'

/** The nice value of threads that page faults wait for; sched(7). */
const URGENT_NICE = -10

/** V8's threads, which the one that collects garbage waits for. */
const HELPER_NAME = 'V8Worker'

/**
 * Has the calling thread, V8's own, and those that it starts from now on, run before what waits for nobody. Returns whether the kernel let
 * it: it takes CAP_SYS_NICE. In Linux a nice value belongs to a thread, and 0 is the one that asks; setpriority(2).
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

/** Has the calling thread, which was started by one with precedence, run as every other process does. */
export function givePrecedence(): void {
  if (getPriority(0) < 0) setPriority(0, 0)
}

function helperThreads(): number[] {
  return readdirSync('/proc/self/task')
    .filter(
      (thread) => readFileSync(`/proc/self/task/${thread}/comm`, 'utf8').trim() === HELPER_NAME,
    )
    .map(Number)
}
