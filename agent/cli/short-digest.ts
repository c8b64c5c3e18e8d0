import { EXIT_CODES } from './exit-codes.ts'
import { CommandFailure } from './failure.ts'

/** Hex digits of a digest in tables: 48 bits tell a million layers apart. */
const SHOWN_HEX_DIGITS = 12

/** "sha256:0123456789ab" for tables; commands that take a digest take it shortened too. */
export function shortDigest(digest: string): string {
  const colon = digest.indexOf(':')
  return digest.slice(0, colon + 1 + SHOWN_HEX_DIGITS)
}

/** The one digest that `written` is the beginning of, with or without its algorithm. Throws CommandFailure (not found, or usage if several are). */
export function completeDigest(written: string, digests: readonly string[]): string {
  const matching = [...new Set(digests)].filter(
    (digest) =>
      digest.startsWith(written) || digest.slice(digest.indexOf(':') + 1).startsWith(written),
  )
  const [only, another] = matching
  if (only === undefined || written === '') {
    throw new CommandFailure(
      EXIT_CODES.notFound,
      `there is no layer ${written === '' ? 'without a name' : written} on this node`,
      'List them: ipdr cache ls',
    )
  }
  if (another === undefined) return only
  throw new CommandFailure(
    EXIT_CODES.usage,
    `${written} is the beginning of ${matching.length} layers: ${matching.slice(0, 3).join(', ')}`,
    'Write more of its digest.',
  )
}
