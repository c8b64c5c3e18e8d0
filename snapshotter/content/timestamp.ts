/** Seconds, and a fraction of up to nine digits: RFC 3339 as Go's time package writes it in UTC. */
const TIMESTAMP =
  /^(?<seconds>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(?<fraction>\d{1,9}))?(?<zone>Z|[+-]\d\d:\d\d)$/

/** A time in nanoseconds since the epoch as RFC 3339, with all nine digits. */
export function formatTimestamp(timeNs: bigint): string {
  const seconds = new Date(Number(timeNs / 1_000_000n)).toISOString().slice(0, 19)
  return `${seconds}.${String(timeNs % 1_000_000_000n).padStart(9, '0')}Z`
}

/** Undefined if `text` is no such time. */
export function parseTimestamp(text: string): bigint | undefined {
  const { seconds, fraction = '', zone } = TIMESTAMP.exec(text.trim())?.groups ?? {}
  const ms = Date.parse(`${seconds}${zone}`)
  if (Number.isNaN(ms)) return undefined
  return BigInt(ms) * 1_000_000n + BigInt(fraction.padEnd(9, '0'))
}
