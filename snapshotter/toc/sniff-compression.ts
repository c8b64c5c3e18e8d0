import { LayerError } from '../errors.ts'

/** How the bytes of a layer's blob are packed. */
export type Compression = 'tar' | 'gzip' | 'zstd' | 'unknown'

/** As many first bytes of a blob as `sniffCompression` looks at: one tar header. Fewer only if the blob is shorter. */
export const SNIFF_BYTES: number = 512

// A tar header's checksum (POSIX.1-2017, pax, ustar interchange format): the sum of its bytes, with the checksum field,
// of octal digits, taken as spaces. Historic writers summed signed bytes.
const CHECKSUM_START = 148
const CHECKSUM_END = 156
const USTAR_START = 257
const USTAR_MAGIC = [0x75, 0x73, 0x74, 0x61, 0x72]

const GZIP_MAGIC = [0x1f, 0x8b]
const ZSTD_MAGIC = [0x28, 0xb5, 0x2f, 0xfd]
/** A zstd stream may begin with frames to skip, whose first byte is 0x50 to 0x5f (RFC 8878, section 3.1.2). */
const ZSTD_SKIPPABLE_MAGIC = [0x2a, 0x4d, 0x18]

/** Formats that are recognised only to be named in a refusal. */
const UNSUPPORTED: readonly { readonly name: string; readonly magic: readonly number[] }[] = [
  { name: 'bzip2', magic: [0x42, 0x5a, 0x68] },
  { name: 'xz', magic: [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00] },
  { name: 'lz4', magic: [0x04, 0x22, 0x4d, 0x18] },
]

/**
 * Tells from the first bytes of a layer's blob how it is packed; media types are known to be wrong. An archive of zeros
 * alone is an empty tar. Throws LayerError UNIMPLEMENTED for a compression that layers have elsewhere and we do not read.
 */
export function sniffCompression(firstBytes: Uint8Array): Compression {
  const header = firstBytes.subarray(0, SNIFF_BYTES)
  // First, because a tar begins with a file's name: with any bytes.
  if (isTarHeader(header)) return 'tar'
  if (startsWith(header, GZIP_MAGIC)) return 'gzip'
  if (startsWith(header, ZSTD_MAGIC) || isSkippableFrame(header)) return 'zstd'
  // A header with a wrong checksum: whoever reads the tar can say more about it.
  if (startsWith(header.subarray(USTAR_START), USTAR_MAGIC)) return 'tar'
  const unsupported = UNSUPPORTED.find(({ magic }) => startsWith(header, magic))
  if (unsupported === undefined) return 'unknown'
  throw new LayerError(
    'UNIMPLEMENTED',
    `layer is compressed with ${unsupported.name}: it must be plain tar, tar+gzip or tar+zstd; convert the image`,
    { compression: unsupported.name },
  )
}

function startsWith(bytes: Uint8Array, magic: readonly number[]): boolean {
  return magic.every((byte, i) => bytes[i] === byte)
}

function isSkippableFrame(bytes: Uint8Array): boolean {
  return ((bytes[0] ?? 0) & 0xf0) === 0x50 && startsWith(bytes.subarray(1), ZSTD_SKIPPABLE_MAGIC)
}

function isTarHeader(header: Uint8Array): boolean {
  if (header.length < SNIFF_BYTES) return false
  return header.every((byte) => byte === 0) || hasTarChecksum(header)
}

function hasTarChecksum(header: Uint8Array): boolean {
  const text = String.fromCharCode(...header.subarray(CHECKSUM_START, CHECKSUM_END))
  const digits = /^[ ]*([0-7]+)[\0 ]*$/.exec(text)?.[1]
  if (digits === undefined) return false
  let unsigned = 0
  let signed = 0
  for (let i = 0; i < header.length; i++) {
    const byte = i >= CHECKSUM_START && i < CHECKSUM_END ? 0x20 : header[i]!
    unsigned += byte
    signed += byte < 0x80 ? byte : byte - 0x100
  }
  const checksum = Number.parseInt(digits, 8)
  return checksum === unsigned || checksum === signed
}
