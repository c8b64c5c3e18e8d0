import { trimMalloc } from '../snapshotter/process-calls.ts'

/** Rest after which memory is given back, in ms. 5 s: page faults of a starting container follow each other faster. */
const REST_MS = 5_000

/**
 * Gives freed memory back to the kernel whenever `work`, a count that only grows, has come to rest. malloc alone keeps it: block
 * buffers of many sizes leave holes that it returns only from the end, 120 MB after one image (test/bench/README.md).
 */
export function releaseIdleMemory(work: () => number): Disposable {
  let [seen, released] = [work(), work()]
  const timer = setInterval(() => {
    const now = work()
    if (now === seen && now !== released) {
      trimMalloc()
      released = now
    }
    seen = now
  }, REST_MS).unref()
  return { [Symbol.dispose]: () => clearInterval(timer) }
}
