import type { Timestamp__Output } from '../../proto/types/google/protobuf/Timestamp.ts'

/** Milliseconds since the epoch; undefined if it was not set. */
export function timestampMs(timestamp: Timestamp__Output | null): number | undefined {
  return timestamp === null ? undefined : Number(timestamp.seconds) * 1000 + timestamp.nanos / 1e6
}

/** For documents: RFC 3339 in UTC, or null. */
export function timestampText(timestamp: Timestamp__Output | null): string | null {
  const ms = timestampMs(timestamp)
  return ms === undefined ? null : new Date(ms).toISOString()
}
