import { crc32 } from 'node:zlib'
import { LayerError } from '../../errors.ts'

/** Bytes of a member's header at most. Its extra field can have 65,535 bytes; name and comment get as much together. */
export const HEADER_BYTES_MAX: number = 128 * 1024

const MAGIC = 0x8b1f
const DEFLATE = 8
const HAS_CHECKSUM = 0x02
const HAS_EXTRA = 0x04
const HAS_NAME = 0x08
const HAS_COMMENT = 0x10
const RESERVED_FLAGS = 0xe0
/** Modification time, extra flags, operating system. */
const UNUSED_BYTES = 6

/**
 * Reads the header of a gzip member (RFC 1952, section 2.3): after a first `next()`, `next(byte)` takes one byte each and
 * is done with the header's last one. What the header says is checked and dropped: a layer's bytes do not depend on it.
 * `blobOffset` is where the header starts, for errors. Throws LayerError DATA_LOSS, or RESOURCE_EXHAUSTED if it is too long.
 */
export function* memberHeader(blobOffset: number): Generator<undefined, void, number> {
  const header: number[] = []

  function* byte(): Generator<undefined, number, number> {
    const next = yield
    header.push(next)
    if (header.length > HEADER_BYTES_MAX) {
      throw new LayerError(
        'RESOURCE_EXHAUSTED',
        `gzip member at byte ${blobOffset} has a header of more than ${HEADER_BYTES_MAX} bytes`,
        { blobOffset },
      )
    }
    return next
  }
  function* uint16(): Generator<undefined, number, number> {
    return (yield* byte()) | ((yield* byte()) << 8)
  }
  function* skip(count: number): Generator<undefined, void, number> {
    for (let i = 0; i < count; i++) yield* byte()
  }
  function* skipText(): Generator<undefined, void, number> {
    while ((yield* byte()) !== 0);
  }
  const malformed = (what: string): LayerError =>
    new LayerError('DATA_LOSS', `no gzip member at byte ${blobOffset} of the blob: ${what}`, {
      blobOffset,
    })

  const magic = yield* uint16()
  if (magic !== MAGIC) throw malformed('it does not begin with 1f 8b')
  const method = yield* byte()
  if (method !== DEFLATE) throw malformed(`compression method ${method} is not deflate (8)`)
  const flags = yield* byte()
  if ((flags & RESERVED_FLAGS) !== 0)
    throw malformed(`reserved flags are set (0x${flags.toString(16)})`)
  yield* skip(UNUSED_BYTES)
  if ((flags & HAS_EXTRA) !== 0) yield* skip(yield* uint16())
  if ((flags & HAS_NAME) !== 0) yield* skipText()
  if ((flags & HAS_COMMENT) !== 0) yield* skipText()
  if ((flags & HAS_CHECKSUM) !== 0) {
    const computed = crc32(Uint8Array.from(header)) & 0xffff
    if ((yield* uint16()) !== computed) throw malformed('the checksum of its header differs')
  }
}
