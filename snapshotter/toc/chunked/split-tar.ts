import { LayerError } from '../../errors.ts'
import { TAR_BLOCK_BYTES } from '../entry-limits.ts'

/** A content that the tar-split leaves out: where it lies in the tar. */
export type Hole = { readonly start: number; readonly length: number }

/** Records of one tar-split. 10,000,000: two an entry for the 4,000,000 entries of a layer, and segments cut at 1 MiB. */
const RECORDS_MAX = 10_000_000

const SEGMENT = 2
const FILE = 1
const newline = 0x0a

/**
 * A tar of which only headers, padding and what follows its end are here, as a tar-split has them
 * (github.com/vbatts/tar-split, tar/storage/entry.go): one JSON object a line, of type 2 with raw bytes in Base64, of type 1 for
 * a file whose `size` bytes of content stand there in the tar.
 */
export class SplitTar {
  readonly size: number
  readonly holes: readonly Hole[]
  readonly #starts: Float64Array
  readonly #segments: readonly Buffer[]

  /** Throws LayerError DATA_LOSS for bytes that are no tar-split, RESOURCE_EXHAUSTED beyond a limit. */
  constructor(lines: Uint8Array) {
    const buffer = Buffer.from(lines.buffer, lines.byteOffset, lines.length)
    const holes: Hole[] = []
    const segments: Buffer[] = []
    const starts: number[] = []
    let [at, size, records] = [0, 0, 0]
    while (at < buffer.length) {
      const found = buffer.indexOf(newline, at)
      const end = found === -1 ? buffer.length : found
      if (end > at) {
        const record = parseRecord(buffer.toString('utf8', at, end), at)
        if (record.bytes === undefined) {
          if (record.length > 0) holes.push({ start: size, length: record.length })
        } else if (record.length > 0) {
          starts.push(size)
          segments.push(record.bytes)
        }
        size += record.length
        if (!Number.isSafeInteger(size + TAR_BLOCK_BYTES))
          throw broken(at, 'its tar is absurdly large')
        if (++records > RECORDS_MAX) {
          const message = `tar-split: it has more than ${RECORDS_MAX} records`
          throw new LayerError('RESOURCE_EXHAUSTED', message)
        }
      }
      at = end + 1
    }
    this.size = size
    this.holes = holes
    this.#starts = Float64Array.from(starts)
    this.#segments = segments
  }

  /** As `ReadTar`. Throws LayerError UNIMPLEMENTED where the bytes are content, as of a sparse file that keeps its map there. */
  read(offset: number, length: number): Uint8Array {
    const parts: Buffer[] = []
    const end = Math.min(offset + length, this.size)
    let at = offset
    for (let index = this.#segmentAt(offset); at < end; index++) {
      const start = this.#starts[index] ?? Number.POSITIVE_INFINITY
      const segment = this.#segments[index]
      if (segment === undefined || start > at || start + segment.length <= at) {
        const message = `byte ${at} of the tar is content, which its tar-split does not have: a sparse file, or tables of another layer`
        throw new LayerError('UNIMPLEMENTED', message, { offset: at })
      }
      const part = segment.subarray(at - start, end - start)
      parts.push(part)
      at += part.length
    }
    return parts.length === 1 ? (parts[0] ?? Buffer.alloc(0)) : Buffer.concat(parts)
  }

  /** The last segment that does not start behind `offset`. */
  #segmentAt(offset: number): number {
    let [low, high] = [0, this.#starts.length - 1]
    while (low < high) {
      const middle = Math.ceil((low + high) / 2)
      if ((this.#starts[middle] ?? 0) <= offset) low = middle
      else high = middle - 1
    }
    return low
  }
}

type TarRecord = { readonly length: number; readonly bytes: Buffer | undefined }

function parseRecord(line: string, offset: number): TarRecord {
  let record: unknown
  try {
    record = JSON.parse(line)
  } catch (cause) {
    throw broken(offset, 'it is no JSON', cause)
  }
  if (typeof record !== 'object' || record === null) throw broken(offset, 'a record is no object')
  const { type, size, payload } = record as Readonly<Record<string, unknown>>
  if (type === SEGMENT) {
    if (typeof payload !== 'string') throw broken(offset, 'a segment has no payload')
    const bytes = Buffer.from(payload, 'base64')
    return { length: bytes.length, bytes }
  }
  if (type !== FILE) throw broken(offset, 'a record is of no known type')
  const length = size ?? 0
  if (typeof length !== 'number' || !Number.isSafeInteger(length) || length < 0) {
    throw broken(offset, 'a file has no usable size')
  }
  return { length, bytes: undefined }
}

function broken(offset: number, what: string, cause?: unknown): LayerError {
  return new LayerError('DATA_LOSS', `tar-split, byte ${offset}: ${what}`, { offset }, cause)
}
