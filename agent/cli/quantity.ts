import { EXIT_CODES } from './exit-codes.ts'
import { CommandFailure } from './failure.ts'

const BYTE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const

/** Bytes for a person, in powers of 1024: "0 B", "1.5 MiB", "312 MiB". */
export function formatBytes(bytes: number): string {
  const power = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), BYTE_UNITS.length - 1)
  const scaled = bytes / 1024 ** power
  return `${power > 0 && scaled < 100 ? scaled.toFixed(1) : Math.round(scaled)} ${BYTE_UNITS[power]}`
}

/** Milliseconds for a person: "0.4 ms", "850 ms", "3.2 s", "2 min 5 s", "3 h 4 min". */
export function formatMs(ms: number): string {
  if (ms < 10) return `${ms.toFixed(1)} ms`
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`
  const minutes = Math.floor(ms / 60_000)
  if (minutes < 60) return `${minutes} min ${Math.floor((ms % 60_000) / 1000)} s`
  if (minutes < 2880) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`
}

/** Throughput for a person, in powers of 1000 as networks are sold: "35.2 MB/s". */
export function formatRate(bytes: number, ms: number): string {
  return `${megabytesPerSecond(bytes, ms).toFixed(1)} MB/s`
}

/** 10^6 bytes a second; 0 if no time passed. */
export function megabytesPerSecond(bytes: number, ms: number): number {
  return ms > 0 ? bytes / 1e6 / (ms / 1000) : 0
}

/** "1 layer", "7 layers". */
export function count(amount: number, noun: string): string {
  return `${amount.toLocaleString('en')} ${noun}${amount === 1 ? '' : 's'}`
}

const SIZE = /^(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?$/i

/** Bytes in "500MB", "10GiB", "1.5g" or "1048576": with i powers of 1024, with B alone of 1000, with neither of 1024. */
export function parseSize(text: string): number {
  const match = SIZE.exec(text.trim())
  const power = 'KMGT'.indexOf(match?.[2]?.toUpperCase() ?? '?') + 1
  const decimal = match?.[3] === '' && /b$/i.test(text.trim())
  const bytes = Math.round(Number(match?.[1]) * (decimal ? 1000 : 1024) ** power)
  if (Number.isSafeInteger(bytes)) return bytes
  throw new CommandFailure(
    EXIT_CODES.usage,
    `'${text}' is not a size`,
    'Write bytes, or a number with a unit: 10GiB, 500MB, 64MiB.',
  )
}
