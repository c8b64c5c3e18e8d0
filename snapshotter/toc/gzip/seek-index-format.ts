import { layerMapKind } from '../../blobs/layer-map-kind.ts'
import { LayerError } from '../../errors.ts'
import { WINDOW_BYTES } from './inflate.ts'
import { type SeekIndex, type SeekSpan, spanProblem } from './seek-index.ts'

// The format, little-endian. Header: kind u8, version u8, zero u16, spans u32, blob size u64, data end u64, layer size
// u64. For each span a record: output offset u64, bit offset u64, bytes of its window u32, SHA-256. Then the windows.

const VERSION = 1
export const HEADER_BYTES: number = 32
const SHA256_BYTES = 32
export const RECORD_BYTES: number = 20 + SHA256_BYTES

/** zstd's bound on what a window becomes that does not compress: n + n/2^8 + (2^17 - n)/2^11 (ZSTD_COMPRESSBOUND). */
const WINDOW_FRAME_BYTES_MAX = WINDOW_BYTES + (WINDOW_BYTES >> 8) + ((2 ** 17 - WINDOW_BYTES) >> 11)

/** The index as bytes; `parseSeekIndex` is the way back. */
export function serialiseSeekIndex({ blobSize, dataEnd, layerSize, spans }: SeekIndex): Uint8Array {
  const windowBytes = spans.reduce((sum, { window }) => sum + (window?.length ?? 0), 0)
  const bytes = new Uint8Array(HEADER_BYTES + spans.length * RECORD_BYTES + windowBytes)
  const view = new DataView(bytes.buffer)
  view.setUint8(0, layerMapKind.gzip)
  view.setUint8(1, VERSION)
  view.setUint32(4, spans.length, true)
  view.setBigUint64(8, BigInt(blobSize), true)
  view.setBigUint64(16, BigInt(dataEnd), true)
  view.setBigUint64(24, BigInt(layerSize), true)
  let record = HEADER_BYTES
  let windowAt = HEADER_BYTES + spans.length * RECORD_BYTES
  for (const { outputOffset, bitOffset, window, sha256 } of spans) {
    view.setBigUint64(record, BigInt(outputOffset), true)
    view.setBigUint64(record + 8, BigInt(bitOffset), true)
    view.setUint32(record + 16, window?.length ?? 0, true)
    bytes.set(sha256, record + 20)
    record += RECORD_BYTES
    if (window === undefined) continue
    bytes.set(window, windowAt)
    windowAt += window.length
  }
  return bytes
}

/**
 * Reads an index, checking every field; the result refers to `bytes`. A hash or a window that is wrong shows when its span
 * is decoded. Throws LayerError DATA_LOSS, or UNIMPLEMENTED for a version that is newer than this.
 */
export function parseSeekIndex(bytes: Uint8Array): SeekIndex {
  if (bytes.length < HEADER_BYTES) throw malformed(`it has ${bytes.length} bytes`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (view.getUint8(0) !== layerMapKind.gzip) throw malformed(`its kind is ${view.getUint8(0)}`)
  if (view.getUint8(1) !== VERSION) {
    throw new LayerError(
      'UNIMPLEMENTED',
      `gzip seek index has version ${view.getUint8(1)}, this agent reads version ${VERSION}: index the layer again`,
    )
  }
  if (view.getUint16(2, true) !== 0) throw malformed('its reserved bytes are not zero')
  const spanCount = view.getUint32(4, true)
  const recordsEnd = HEADER_BYTES + spanCount * RECORD_BYTES
  if (recordsEnd > bytes.length) {
    throw malformed(`it has ${bytes.length} bytes and declares ${spanCount} spans`)
  }

  const spans: SeekSpan[] = []
  let windowAt = recordsEnd
  for (let record = HEADER_BYTES; record < recordsEnd; record += RECORD_BYTES) {
    const windowBytes = view.getUint32(record + 16, true)
    const bitOffset = readSize(view, record + 8)
    if (windowBytes > WINDOW_FRAME_BYTES_MAX || windowAt + windowBytes > bytes.length) {
      throw malformed(`the window of span ${spans.length} has ${windowBytes} bytes`)
    }
    if (windowBytes === 0 && bitOffset % 8 !== 0) {
      throw malformed(`span ${spans.length} starts a member at bit ${bitOffset}, inside a byte`)
    }
    spans.push({
      outputOffset: readSize(view, record),
      bitOffset,
      window: windowBytes === 0 ? undefined : bytes.subarray(windowAt, windowAt + windowBytes),
      sha256: bytes.subarray(record + 20, record + RECORD_BYTES),
    })
    windowAt += windowBytes
  }
  if (windowAt !== bytes.length) throw malformed(`${bytes.length - windowAt} bytes are left over`)

  const index = {
    blobSize: readSize(view, 8),
    dataEnd: readSize(view, 16),
    layerSize: readSize(view, 24),
    spans,
  }
  if (index.dataEnd > index.blobSize) throw malformed('its data ends after the blob')
  const first = spans[0]
  if (first === undefined && index.layerSize > 0) throw malformed('its layer has no spans')
  if (first !== undefined && (first.outputOffset > 0 || first.bitOffset > 0 || first.window)) {
    throw malformed('its first span is not the start of the blob')
  }
  const problem = spanProblem(index)
  if (problem !== undefined) throw malformed(problem)
  return index
}

function readSize(view: DataView, at: number): number {
  const size = Number(view.getBigUint64(at, true))
  if (!Number.isSafeInteger(size)) throw malformed(`it has an offset or size of ${size}`)
  return size
}

function malformed(what: string): LayerError {
  return new LayerError('DATA_LOSS', `gzip seek index is malformed: ${what}`)
}
