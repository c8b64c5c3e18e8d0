/** Rest after which something is done about it, in ms. 5 s: page faults of a starting container follow each other faster. */
const REST_MS = 5_000

/** Calls `tidy` whenever `work`, a count that only grows, has come to rest. */
export function whenAtRest(work: () => number, tidy: () => void): Disposable {
  let [seen, tidied] = [work(), work()]
  const timer = setInterval(() => {
    const now = work()
    if (now === seen && now !== tidied) {
      tidy()
      tidied = now
    }
    seen = now
  }, REST_MS).unref()
  return { [Symbol.dispose]: () => clearInterval(timer) }
}
