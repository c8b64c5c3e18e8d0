import type { ErrorFacts } from './errors.ts'

type Write = (facts: ErrorFacts, sentence: string) => void

/** Where a part says what happened: one plain sentence, the facts beside it. A pino logger is one. */
export type Log = {
  readonly debug: Write
  readonly info: Write
  readonly warn: Write
  readonly error: Write
}
