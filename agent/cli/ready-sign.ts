import { EXIT_CODES } from './exit-codes.ts'
import { CommandFailure } from './failure.ts'

/** What says that a container has started: a text in a line of its output, or an address that answers a GET with success. */
export type ReadySign =
  | { readonly kind: 'line'; readonly text: string }
  | { readonly kind: 'answer'; readonly url: URL }

/** As a user says it: an address of HTTP, or else a text. Throws CommandFailure for an address that is none. */
export function readySign(text: string): ReadySign {
  if (!/^https?:\/\//.test(text)) return { kind: 'line', text }
  if (URL.canParse(text)) return { kind: 'answer', url: new URL(text) }
  throw new CommandFailure(EXIT_CODES.usage, `--ready ${text} is no address that can be asked`)
}
