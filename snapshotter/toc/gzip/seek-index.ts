import type { ByteRange } from '../../byte-range.ts'

/** A part of a gzip blob's output that can be decoded alone. It ends where the next one starts. */
export type SeekSpan = {
  /** Bytes of output before it. */
  readonly outputOffset: number
  /** Bits of the blob before it: the start of a member, or of a block inside one. */
  readonly bitOffset: number
  /** Inside a member: the output before it that it may refer to, as a zstd frame. Undefined at the start of a member. */
  readonly window: Uint8Array | undefined
  /** Of its output: what makes a wrong index, window or blob show before a byte of it is used. */
  readonly sha256: Uint8Array
}

/** How to decode any part of a gzip blob without what comes before it. */
export type SeekIndex = {
  readonly blobSize: number
  /** Where the blob's last member ends; only zeros follow. */
  readonly dataEnd: number
  readonly layerSize: number
  /** Ascending, without gaps, from 0 on; none if the layer is empty. */
  readonly spans: readonly SeekSpan[]
}

/** Output of a span at most, in bytes: one is held in memory whole. Twice the 32 MiB that checkpoints may be apart. */
export const SPAN_BYTES_MAX: number = 64 * 1024 * 1024

/** Blob bytes of a span at most. Stored blocks add 5 bytes to 65,535; the rest is room for empty blocks and members. */
export const SPAN_BLOB_BYTES_MAX: number = 2 * SPAN_BYTES_MAX

/** The output of span `number`. */
export function spanOutputRange(index: SeekIndex, number: number): ByteRange {
  return {
    start: index.spans[number]!.outputOffset,
    end: index.spans[number + 1]?.outputOffset ?? index.layerSize,
  }
}

/** The blob bytes that span `number` is decoded from; the last one may be shared with the next span. */
export function spanBlobRange(index: SeekIndex, number: number): ByteRange {
  const next = index.spans[number + 1]
  return {
    start: Math.floor(index.spans[number]!.bitOffset / 8),
    end: next === undefined ? index.dataEnd : Math.ceil(next.bitOffset / 8),
  }
}

/** The first span that is empty, goes backwards or passes a limit, in words; undefined if all are sound. */
export function spanProblem(index: SeekIndex): string | undefined {
  for (let number = 0; number < index.spans.length; number++) {
    const output = spanOutputRange(index, number)
    const blob = spanBlobRange(index, number)
    if (output.end <= output.start || output.end - output.start > SPAN_BYTES_MAX) {
      return `span ${number} makes bytes ${output.start} to ${output.end}; it must be 1 to ${SPAN_BYTES_MAX} of them`
    }
    if (blob.end <= blob.start || blob.end - blob.start > SPAN_BLOB_BYTES_MAX) {
      return `span ${number} comes from bytes ${blob.start} to ${blob.end}; it must be 1 to ${SPAN_BLOB_BYTES_MAX} of them`
    }
  }
  return undefined
}
