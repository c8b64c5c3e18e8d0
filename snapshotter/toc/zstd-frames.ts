import zlib from 'node:zlib'
import { LayerError } from '../errors.ts'
import { type ZstdLibrary, zstdLibrary } from './zstd-library.ts'

/** One frame of a zstd stream, from its first to past its last byte. */
export type ZstdFrame = {
  readonly kind: 'zstd' | 'skippable'
  readonly start: number
  readonly end: number
  /** Bytes it decodes to: 0 for a skippable frame, undefined where its header does not say. */
  readonly contentSize: number | undefined
}

/** Bytes of a skippable frame before its user data: magic 4, size 4. RFC 8878 section 3.1.2. */
export const SKIPPABLE_HEADER_BYTES = 8

const ZSTD_MAGIC = 0xfd2fb528
const SKIPPABLE_MAGIC = 0x184d2a50

export type ZstdFrameHeader =
  | { readonly kind: 'skippable'; readonly headerBytes: number; readonly dataBytes: number }
  | {
      readonly kind: 'zstd'
      readonly headerBytes: number
      readonly contentSize: number | undefined
      readonly hasChecksum: boolean
    }

/** Whether a file that starts with these four or more bytes is zstd. */
export function isZstd(bytes: Uint8Array): boolean {
  if (bytes.length < 4) return false
  const magic = view(bytes).getUint32(0, true)
  return magic === ZSTD_MAGIC || (magic & 0xfffffff0) >>> 0 === SKIPPABLE_MAGIC
}

/**
 * Parses the frame header that starts at `bytes[0]`, RFC 8878 sections 3.1.1.1 and 3.1.2. Undefined if it needs more bytes.
 * `offset`, the place in the stream, is for the error: LayerError DATA_LOSS if no frame starts here, UNIMPLEMENTED for a
 * frame that needs a dictionary.
 */
export function parseFrameHeader(bytes: Uint8Array, offset: number): ZstdFrameHeader | undefined {
  if (bytes.length < 5) return undefined
  const at = view(bytes)
  const magic = at.getUint32(0, true)
  if ((magic & 0xfffffff0) >>> 0 === SKIPPABLE_MAGIC) {
    if (bytes.length < SKIPPABLE_HEADER_BYTES) return undefined
    return {
      kind: 'skippable',
      headerBytes: SKIPPABLE_HEADER_BYTES,
      dataBytes: at.getUint32(4, true),
    }
  }
  if (magic !== ZSTD_MAGIC) throw broken(offset, 'no frame starts there')
  const descriptor = at.getUint8(4)
  if ((descriptor & 0x08) !== 0) throw broken(offset, 'the reserved bit of the frame header is set')
  const singleSegment = (descriptor & 0x20) !== 0
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3] ?? 0
  const sizeBytes = [singleSegment ? 1 : 0, 2, 4, 8][descriptor >> 6] ?? 0
  const dictionaryAt = 5 + (singleSegment ? 0 : 1)
  const sizeAt = dictionaryAt + dictionaryBytes
  const headerBytes = sizeAt + sizeBytes
  if (bytes.length < headerBytes) return undefined
  if (bytes.subarray(dictionaryAt, sizeAt).some((byte) => byte !== 0)) {
    const message = `zstd stream, byte ${offset}: the frame needs a dictionary, which no layer has`
    throw new LayerError('UNIMPLEMENTED', message, { offset })
  }
  const hasChecksum = (descriptor & 0x04) !== 0
  const contentSize = contentSizeAt(at, sizeAt, sizeBytes)
  if (contentSize !== undefined && !Number.isSafeInteger(contentSize)) {
    throw broken(offset, 'the frame declares more than 2^53 bytes')
  }
  return { kind: 'zstd', headerBytes, contentSize, hasChecksum }
}

/** What the three bytes of a block header say, RFC 8878 section 3.1.1.2. */
export type ZstdBlockHeader = { readonly isLast: boolean; readonly storedBytes: number }

/** Bytes of a block header. */
export const BLOCK_HEADER_BYTES = 3

/** Parses a block header. Throws LayerError DATA_LOSS for the reserved type. */
export function parseBlockHeader(bytes: Uint8Array, offset: number): ZstdBlockHeader {
  const header = (bytes[0] ?? 0) | ((bytes[1] ?? 0) << 8) | ((bytes[2] ?? 0) << 16)
  const type = (header >> 1) & 3
  if (type === 3) throw broken(offset, 'a block has the reserved type')
  // A run-length block stores one byte, whatever its size.
  return { isLast: (header & 1) !== 0, storedBytes: type === 1 ? 1 : header >> 3 }
}

/**
 * The frames of a whole zstd stream, found by their headers and block sizes, nothing decompressed.
 * `offset`, where the stream starts in its blob, is for errors: LayerError DATA_LOSS if it is truncated or no zstd.
 */
export function zstdFrames(stream: Uint8Array, offset = 0): ZstdFrame[] {
  const frames: ZstdFrame[] = []
  let start = 0
  while (start < stream.length) {
    const rest = stream.subarray(start)
    const header = parseFrameHeader(rest, offset + start)
    if (header === undefined) throw broken(offset + start, 'a frame header is cut off')
    const end =
      start +
      (header.kind === 'skippable'
        ? header.headerBytes + header.dataBytes
        : zstdBytes(rest, header, offset + start))
    if (end > stream.length) throw broken(offset + start, 'a frame is cut off')
    const contentSize = header.kind === 'skippable' ? 0 : header.contentSize
    frames.push({ kind: header.kind, start, end, contentSize })
    start = end
  }
  return frames
}

/**
 * Decodes one frame that is known to hold `size` bytes. Node's zstdDecompressSync stops silently after the first frame of its
 * input, so each frame is decoded by a call of its own. Throws LayerError DATA_LOSS if it does not make exactly `size` bytes.
 */
export function decodeZstdFrame(frame: Uint8Array, size: number, offset = 0): Uint8Array {
  const decoded = decodeUpTo(frame, size, offset)
  if (decoded.length === size) return decoded
  throw broken(offset, `the frame makes ${decoded.length} bytes in place of ${size}`)
}

/**
 * Decodes whole frames that together make `size` bytes, whether or not each says how many it makes; skippable ones make none.
 * Never makes more than `size` bytes. Throws LayerError DATA_LOSS if they are not such frames.
 */
export function decodeZstdFrames(stream: Uint8Array, size: number, offset = 0): Uint8Array {
  const frames = zstdFrames(stream, offset).filter(({ kind }) => kind === 'zstd')
  const [only, ...more] = frames
  if (only?.contentSize === size && more.length === 0) {
    return decodeZstdFrame(stream.subarray(only.start, only.end), size, offset + only.start)
  }
  const decoded = Buffer.allocUnsafe(size)
  let filled = 0
  for (const { start, end, contentSize } of frames) {
    const room = size - filled
    const tooMany = (): LayerError => broken(offset + start, `more than ${size} bytes follow`)
    if ((contentSize ?? 0) > room) throw tooMany()
    const bytes = decodeUpTo(stream.subarray(start, end), contentSize ?? room, offset + start)
    // One byte where there is no room at all: see `decodeUpTo`.
    if (bytes.length > room) throw tooMany()
    decoded.set(bytes, filled)
    filled += bytes.length
  }
  if (filled === size) return decoded
  throw broken(offset, `its frames make ${filled} bytes in place of ${size}`)
}

/**
 * Fills `into` with what the frames of `stream` make, beside the main thread and several times as fast as `decodeZstdFrames` where the
 * machine has libzstd: one call for all of them, where Node sets up a decoder for each. `stream` must not change meanwhile.
 * Rejects as `decodeZstdFrames` throws; `into` then holds rubbish.
 */
export async function decodeZstdInto(
  into: Uint8Array,
  stream: Uint8Array,
  offset = 0,
  library: ZstdLibrary | 'none' = zstdLibrary() ?? 'none',
): Promise<void> {
  if (library === 'none') {
    into.set(decodeZstdFrames(stream, into.length, offset))
    return
  }
  // Looked at before: the library reads formats that are no zstd of RFC 8878 as well.
  zstdFrames(stream, offset)
  let made: number
  try {
    made = await library.decompress(into, stream)
  } catch (cause) {
    throw broken(offset, `its frames do not decode to ${into.length} bytes`, cause)
  }
  if (made === into.length) return
  throw broken(offset, `its frames make ${made} bytes in place of ${into.length}`)
}

/** Wraps bytes in a skippable frame, which every zstd decoder passes over. `variant` is the low nibble of its magic. */
export function skippableFrame(content: Uint8Array, variant = 0): Uint8Array {
  const frame = new Uint8Array(SKIPPABLE_HEADER_BYTES + content.length)
  view(frame).setUint32(0, SKIPPABLE_MAGIC + variant, true)
  view(frame).setUint32(4, content.length, true)
  frame.set(content, SKIPPABLE_HEADER_BYTES)
  return frame
}

function decodeUpTo(frame: Uint8Array, max: number, offset: number): Uint8Array {
  try {
    return zlib.zstdDecompressSync(frame, {
      // Node takes no limit of 0.
      maxOutputLength: Math.max(max, 1),
      // All in one go, where Node would hand out 16 KiB at a time.
      chunkSize: Math.max(max, 64),
    })
  } catch (cause) {
    throw broken(offset, `the frame of ${max} bytes does not decode`, cause)
  }
}

/** How long a zstd frame is that starts at `bytes[0]`; may be more than there are bytes. */
function zstdBytes(
  bytes: Uint8Array,
  header: ZstdFrameHeader & { kind: 'zstd' },
  offset: number,
): number {
  let at = header.headerBytes
  for (;;) {
    if (at + BLOCK_HEADER_BYTES > bytes.length) throw broken(offset, 'a frame is cut off')
    const block = parseBlockHeader(bytes.subarray(at), offset + at)
    at += BLOCK_HEADER_BYTES + block.storedBytes
    if (block.isLast) return at + (header.hasChecksum ? 4 : 0)
  }
}

function contentSizeAt(at: DataView, start: number, bytes: number): number | undefined {
  if (bytes === 0) return undefined
  if (bytes === 1) return at.getUint8(start)
  // Two bytes count from 256, RFC 8878 section 3.1.1.1.4.
  if (bytes === 2) return at.getUint16(start, true) + 256
  return bytes === 4 ? at.getUint32(start, true) : Number(at.getBigUint64(start, true))
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function broken(offset: number, what: string, cause?: unknown): LayerError {
  const message = `zstd stream, byte ${offset}: ${what}; fetch the layer again or ask its publisher`
  return new LayerError('DATA_LOSS', message, { offset }, cause)
}
