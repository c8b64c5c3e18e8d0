import { entryError, TAR_BLOCK_BYTES } from './entry-limits.ts'

/**
 * The fields of one 512-byte tar header as they are written, before extension headers are applied.
 * Strings are latin1, one char a byte. Formats: v7, ustar (POSIX.1-1988), GNU (tar.h), star; layouts as in pax(5).
 */
export type TarHeader = {
  readonly offset: number
  readonly name: string
  readonly linkName: string
  /** One char; '\0' and '0' are regular files. */
  readonly typeflag: string
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size: number
  readonly mtime: number
  readonly devMajor: number
  readonly devMinor: number
  readonly format: 'v7' | 'ustar' | 'gnu' | 'star'
  /** The access or change times of GNU and star headers are set; nobody here reads them, but others do. */
  readonly hasOldTimes: boolean
  /** The block itself, for the sparse map in it; valid only until more of the tar is read. */
  readonly block: Buffer
}

const USTAR_MAGIC = 'ustar\x0000'
const GNU_MAGIC = 'ustar  \0'

/** Parses and verifies one header block. Throws LayerError INVALID_ARGUMENT for a wrong checksum or number. */
export function parseTarHeader(block: Buffer, offset: number): TarHeader {
  const name = cString(block, 0, 100)
  const at = { path: name, offset }
  checkChecksum(block, offset)
  const number = (field: string, start: number, end: number): number => {
    const value = tarNumber(block, start, end)
    if (value === undefined) {
      throw entryError('INVALID_ARGUMENT', at, `has a ${field} that is not a number`)
    }
    return value
  }
  const format = tarFormat(block)
  const device = format !== 'v7'
  const prefixEnd = format === 'ustar' ? 500 : 476
  const prefix = format === 'ustar' || format === 'star' ? cString(block, 345, prefixEnd) : ''
  return {
    offset,
    name: prefix === '' ? name : `${prefix}/${name}`,
    linkName: cString(block, 157, 257),
    typeflag: String.fromCharCode(block[156] ?? 0),
    mode: number('mode', 100, 108),
    uid: number('user ID', 108, 116),
    gid: number('group ID', 116, 124),
    size: number('size', 124, 136),
    mtime: number('modification time', 136, 148),
    devMajor: device ? number('device number', 329, 337) : 0,
    devMinor: device ? number('device number', 337, 345) : 0,
    format,
    hasOldTimes:
      (format === 'gnu' && !isZeros(block.subarray(345, 369))) ||
      (format === 'star' && !isZeros(block.subarray(476, 500))),
    block,
  }
}

/** Whether every byte is zero: such a header block ends the archive. */
export function isZeros(bytes: Uint8Array): boolean {
  for (const byte of bytes) if (byte !== 0) return false
  return true
}

/**
 * The number in a header field: octal digits between spaces and NULs, or base-256 when the top bit is set (GNU).
 * Empty fields are 0. Undefined if it is neither or lies beyond ±2^53.
 */
export function tarNumber(block: Buffer, start: number, end: number): number | undefined {
  const first = block[start] ?? 0
  if ((first & 0x80) === 0) return octalNumber(block, start, end)
  // Two's complement over all bits but the top one of the first byte, which only marks the encoding.
  let value = BigInt((first & 0x40) === 0 ? first & 0x7f : first - 256)
  for (let index = start + 1; index < end; index++) value = value * 256n + BigInt(block[index] ?? 0)
  const number = Number(value)
  return Number.isSafeInteger(number) ? number : undefined
}

/** Digits after any spaces and NULs, up to the next of them: writers end fields with either. */
function octalNumber(block: Buffer, start: number, end: number): number | undefined {
  let at = start
  while (at < end && isBlank(block[at])) at++
  let value = 0
  for (; at < end && !isBlank(block[at]); at++) {
    const digit = (block[at] ?? 0) - 0x30
    if (digit < 0 || digit > 7) return undefined
    value = value * 8 + digit
  }
  return value
}

function isBlank(byte: number | undefined): boolean {
  return byte === 0x20 || byte === 0
}

function tarFormat(block: Buffer): TarHeader['format'] {
  const magic = block.toString('latin1', 257, 265)
  if (magic === GNU_MAGIC) return 'gnu'
  if (!magic.startsWith('ustar\0')) return 'v7'
  if (block.toString('latin1', 508, 512) === 'tar\0') return 'star'
  // Some writers leave the version empty; the fields are ustar's all the same.
  return magic === USTAR_MAGIC || magic.startsWith('ustar\0') ? 'ustar' : 'v7'
}

/** The checksum is the sum of all bytes with its own field as spaces; old writers summed signed bytes. */
function checkChecksum(block: Buffer, offset: number): void {
  let unsigned = 0
  let signed = 0
  for (let index = 0; index < TAR_BLOCK_BYTES; index++) {
    const byte = index >= 148 && index < 156 ? 0x20 : (block[index] ?? 0)
    unsigned += byte
    signed += byte > 127 ? byte - 256 : byte
  }
  const written = tarNumber(block, 148, 156)
  if (written === unsigned || written === signed) return
  const place = { path: '', offset }
  throw entryError('INVALID_ARGUMENT', place, 'is not a tar header: its checksum is wrong')
}

/** The bytes of a field up to the first NUL. */
export function cString(block: Buffer, start: number, end: number): string {
  const nul = block.subarray(start, end).indexOf(0)
  return block.toString('latin1', start, nul === -1 ? end : start + nul)
}
