/**
 * Runs `task` for every item with at most `concurrency` at once; items added through `add` while it runs are taken too. The first
 * failure aborts the signal that the others got, and is what this rejects with once all have stopped.
 */
export async function boundedParallel<T>(
  items: Iterable<T>,
  { concurrency, signal }: { concurrency: number; signal: AbortSignal },
  task: (item: T, signal: AbortSignal, add: (item: T) => void) => Promise<void>,
): Promise<void> {
  const waiting = [...items].toReversed()
  const failed = new AbortController()
  const stop = AbortSignal.any([signal, failed.signal])
  const failures: unknown[] = []
  const running = new Set<Promise<void>>()
  const start = (item: T): void => {
    const run = task(item, stop, (item) => waiting.push(item))
      .catch((error: unknown) => {
        failures.push(error)
        failed.abort(error)
      })
      .finally(() => running.delete(run))
    running.add(run)
  }
  while ((waiting.length > 0 || running.size > 0) && failures.length === 0) {
    while (waiting.length > 0 && running.size < concurrency) start(waiting.pop() as T)
    await Promise.race(running)
  }
  await Promise.all(running)
  if (failures.length > 0) throw failures[0]
}
