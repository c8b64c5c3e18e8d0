import { z } from 'zod'

/** What a worker tells its supervisor over the process channel. */
export const workerMessage: z.ZodType<WorkerMessage> = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('ready'), rung: z.string().optional() }),
  z.strictObject({ kind: z.literal('alive') }),
  z.strictObject({ kind: z.literal('stopped'), lazyMountsInUse: z.number().int().nonnegative() }),
])

/** How often a supervisor hears that a worker's event loop turns, in ms; it gives up after thirty times that. */
const ALIVE_INTERVAL_MS = 1_000

/** Tells the supervisor of this process, if it has one. */
export function tellSupervisor(message: WorkerMessage): void {
  if (process.connected) process.send?.(message)
}

/** Tells it that we are alive until it is disposed of. */
export function keepTellingOfLife(): Disposable {
  const alive = setInterval(() => tellSupervisor({ kind: 'alive' }), ALIVE_INTERVAL_MS)
  return { [Symbol.dispose]: () => clearInterval(alive) }
}

export type WorkerMessage =
  /** Every socket is open. `rung`, of the data worker: which rung of the kernel ladder the node stands on. */
  | { readonly kind: 'ready'; readonly rung?: string | undefined }
  /** The event loop turns; sent every second. */
  | { readonly kind: 'alive' }
  /** Everything is flushed and closed. Lazy mounts that a container may still use were left alone. */
  | { readonly kind: 'stopped'; readonly lazyMountsInUse: number }
