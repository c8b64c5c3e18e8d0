import type { Output } from './output.ts'
import type { Progress } from './progress.ts'

/** What a command is run with beside its own arguments. */
export type Session = {
  /** Standard output: the command's answer. */
  readonly output: Output
  /** Standard error: how far it is. */
  readonly progress: Progress
  /** Unix socket of the agent on this node. */
  readonly agentSocket: string
  /** Aborts on SIGINT and SIGTERM; the reason is an Interrupted. */
  readonly signal: AbortSignal
}
