import { hash } from 'node:crypto'

/** The shortest chunk of a long content, in bytes. 128 KiB: about 50 KiB compressed, worth a request of its own. */
export const CHUNK_BYTES_MIN: number = 128 * 1024

/** Where chunks of a long content tend to end, in bytes. 512 KiB: 10 ms to decode and to fetch at 50 MB/s. */
export const CHUNK_BYTES_USUAL: number = 512 * 1024

/** The longest chunk, in bytes. 1 MiB less 4 KiB of zstd headers: a block that cannot be compressed still is 1 MiB at most. */
export const CHUNK_BYTES_MAX: number = 1024 * 1024 - 4096

/**
 * Cuts long contents where their own bytes say so, so that an insertion moves few cuts: a gear hash over the last 32 bytes,
 * with a stricter test before the usual length and a laxer one after it (normalised chunking, as FastCDC).
 * The cuts are part of the format: the same content must be cut alike for ever, or it is not the same block.
 */
export class ContentChunks {
  /** A random number for each byte: the first four bytes of its SHA-256. */
  readonly #gear = Uint32Array.from({ length: 256 }, (_, byte) =>
    hash('sha256', Uint8Array.of(byte), 'buffer').readUInt32BE(),
  )

  /**
   * How many bytes of `content` are its next chunk. `content` is all that is left, or `CHUNK_BYTES_MAX` bytes of it.
   */
  next(content: Uint8Array): number {
    const end = Math.min(content.length, CHUNK_BYTES_MAX)
    if (end <= CHUNK_BYTES_MIN) return end
    const gear = this.#gear
    let at = CHUNK_BYTES_MIN - 32
    let sum = 0
    // The hash forgets a byte after 32 shifts: these fill it.
    for (; at < CHUNK_BYTES_MIN; at++) sum = ((sum << 1) + (gear[content[at] ?? 0] ?? 0)) | 0
    // Chances of 2^-21 a byte up to the usual length and 2^-17 beyond: most cuts fall within 150 KiB after it.
    const usual = Math.min(end, CHUNK_BYTES_USUAL)
    for (; at < usual; at++) {
      sum = ((sum << 1) + (gear[content[at] ?? 0] ?? 0)) | 0
      if (sum >>> 11 === 0) return at + 1
    }
    for (; at < end; at++) {
      sum = ((sum << 1) + (gear[content[at] ?? 0] ?? 0)) | 0
      if (sum >>> 15 === 0) return at + 1
    }
    return end
  }
}
