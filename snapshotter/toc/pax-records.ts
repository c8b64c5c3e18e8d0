import type { EntryPlace } from './entry-limits.ts'
import { entryError } from './entry-limits.ts'

/**
 * The records of one PAX extended header (POSIX.1-2001, pax "pax Header Block"), in order, since sparse format 0.0
 * repeats keys. Keys and values are latin1, one char a byte.
 */
export type PaxRecords = readonly (readonly [key: string, value: string])[]

/** Splits a PAX body of `length key=value\n` records. Throws LayerError INVALID_ARGUMENT if it is not made of them. */
export function parsePaxRecords(body: Buffer, place: EntryPlace): PaxRecords {
  const records: [string, string][] = []
  let start = 0
  // A body of NULs after the last record is padding that some writers count in the size.
  while (start < body.length && body[start] !== 0) {
    const space = body.indexOf(0x20, start)
    const digits = space === -1 ? '' : body.toString('latin1', start, space)
    const end = /^[0-9]{1,9}$/.test(digits) ? start + Number(digits) : Number.NaN
    const equals = body.indexOf(0x3d, space + 1)
    // `!(a <= b)` also refuses NaN.
    if (!(end <= body.length) || body[end - 1] !== 0x0a || equals === -1 || equals >= end) {
      throw entryError('INVALID_ARGUMENT', place, `has a malformed PAX record at its byte ${start}`)
    }
    records.push([
      body.toString('latin1', space + 1, equals),
      body.toString('latin1', equals + 1, end - 1),
    ])
    start = end
  }
  return records
}

/** A PAX decimal number; undefined if it is none or lies beyond ±2^53. */
export function paxNumber(value: string): number | undefined {
  if (!/^-?[0-9]+$/.test(value)) return undefined
  const number = Number(value)
  return Number.isSafeInteger(number) ? number : undefined
}

/** Seconds since the epoch, rounded down, and nanoseconds 0 to 999,999,999. */
export type TarTime = { readonly sec: number; readonly nsec: number }

/** A PAX time: decimal seconds with an optional fraction, cut to nanoseconds towards zero as Go's archive/tar does. */
export function paxTime(value: string): TarTime | undefined {
  const match = /^(-?)([0-9]+)(?:\.([0-9]*))?$/.exec(value)
  if (match === null) return undefined
  const seconds = Number(match[2])
  const nanoseconds = Number((match[3] ?? '').slice(0, 9).padEnd(9, '0'))
  if (!Number.isSafeInteger(seconds)) return undefined
  if (match[1] === '') return { sec: seconds, nsec: nanoseconds }
  return nanoseconds === 0
    ? { sec: 0 - seconds, nsec: 0 }
    : { sec: -seconds - 1, nsec: 1_000_000_000 - nanoseconds }
}
