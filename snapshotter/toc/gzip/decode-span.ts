import {
  constants,
  gunzipSync,
  inflateRawSync,
  type ZlibOptions,
  zstdDecompressSync,
} from 'node:zlib'
import { WINDOW_BYTES } from './inflate.ts'

export type SpanStart = {
  /** How many bits of the first byte belong to what comes before, 0 to 7. */
  readonly bit: number
  /** The zstd frame of what may be referred to; undefined at the start of a member. */
  readonly window: Uint8Array | undefined
  /** Bytes to decode; more than 0. */
  readonly length: number
}

/** CRC-32 and size (RFC 1952, section 2.3.1). */
const TRAILER_BYTES = 8

// Blocks without output, in the order of the stream's bits.
/** 10 bits: not final, type 1, end of block (RFC 1951, section 3.2.6). */
const EMPTY_FIXED_BLOCK = '0 10 0000000'
/**
 * 97 bits: not final, type 2 (RFC 1951, section 3.2.7); 257 literal and 11 distance codes, 18 lengths of the code length
 * code; of these 18 (`1`) and 1 (`0`) have a bit each, the rest none; 138 + 118 zeros, a 1 for the end of block, 11 zeros;
 * end of block.
 */
const EMPTY_DYNAMIC_BLOCK = `0 01 00000 01010 0111
  000 000 100 000 000 000 000 000 000 000 000 000 000 000 000 000 000 100
  1 1111111 1 1101011 0 1 0000000
  0`
/** zlib starts at whole bytes. For each of the 8 places in a byte, blocks without output that end there, as bytes. */
const PRELUDES: readonly Buffer[] = Array.from({ length: 8 }, (_, bit) =>
  packBits((bit % 2 === 0 ? '' : EMPTY_DYNAMIC_BLOCK) + EMPTY_FIXED_BLOCK.repeat(bit >> 1)),
)

/**
 * Decodes a span of a gzip blob with Node's zlib. The result may be too short, or not what was indexed: the caller checks
 * length and hash. Throws zlib's error if `blob` or the window is malformed or makes more than `length` bytes.
 */
export function decodeSpan(blob: Uint8Array, { bit, window, length }: SpanStart): Uint8Array {
  if (window === undefined) return gunzipSync(blob, limits(length))

  const prelude = PRELUDES[bit]!
  const stream = Buffer.concat(bit === 0 ? [blob] : [prelude, blob.subarray(1)])
  if (bit > 0) stream[prelude.length - 1]! |= blob[0]! & (0xff << bit)
  // Asked for `info`, zlib also tells where it stopped; its type does not say so.
  const { buffer, engine } = inflateRawSync(stream, {
    ...limits(length),
    dictionary: zstdDecompressSync(window, { maxOutputLength: WINDOW_BYTES }),
    info: true,
  }) as unknown as { buffer: Buffer; engine: { bytesWritten: number } }
  // The member that the span starts in may end before the span does: what follows are members.
  const members = stream.subarray(engine.bytesWritten + TRAILER_BYTES)
  const missing = length - buffer.length
  if (missing === 0 || members.length === 0) return buffer
  return Buffer.concat([buffer, gunzipSync(members, limits(missing))])
}

function limits(length: number): ZlibOptions {
  return {
    // A span is cut out of its blob: that it ends without a final block is right.
    finishFlush: constants.Z_SYNC_FLUSH,
    maxOutputLength: length,
    // One buffer takes all output, and is not full then: else zlib would ask for a second one as big.
    chunkSize: Math.max(length + 1, constants.Z_MIN_CHUNK),
  }
}

/** The digits of `bits` as bytes, the first one lowest. */
function packBits(bits: string): Buffer {
  const digits = bits.replaceAll(/\s/g, '')
  const bytes = Buffer.alloc(Math.ceil(digits.length / 8))
  for (let i = 0; i < digits.length; i++) bytes[i >> 3]! |= Number(digits[i]) << (i & 7)
  return bytes
}
