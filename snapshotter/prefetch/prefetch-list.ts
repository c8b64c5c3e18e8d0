import zlib from 'node:zlib'
import { LayerError } from '../errors.ts'
import { type Digest, isDigest } from '../oci/digest.ts'
import { LAYERS_MAX } from '../oci/manifest.ts'
import { ByteReader } from '../toc/byte-reader.ts'
import { ByteWriter } from '../toc/byte-writer.ts'
import { cleanPath } from '../toc/entry-limits.ts'
import { decodeZstdFrame, zstdFrames } from '../toc/zstd-frames.ts'

/*
 * A prefetch list as bytes: one zstd frame that declares its size, of
 *
 *   "IPDRPRE1"
 *   layers: count, then per layer its diff ID and the bytes of its tar
 *   files:  count, then per file its layer; its path as bytes shared with the path before and the rest; its size
 *   ranges: count, then per range, in order of first use, its file; gap after the range before in the tar (int); offset in
 *           the file; length
 *
 * All numbers are LEB128 (ByteWriter). A reader refuses a version that it does not know, and goes without.
 */

/** The most files and ranges of a list. 65,536: a start of numpy reads 902 ranges of 160 files, the largest seen 12,000. */
export const FILES_MAX = 65_536
export const RANGES_MAX = 65_536

/** A list as stored, in bytes. 1 MiB: 65,536 ranges of 8 bytes and 16,384 paths of 32. */
export const LIST_BYTES_MAX: number = 1024 ** 2

/** A list decompressed, in bytes. 8 MiB: zstd brings sorted paths to an eighth at best. */
const LIST_BODY_BYTES_MAX = 8 * 1024 ** 2

const magic = Buffer.from('IPDRPRE1', 'latin1')
const subject = 'prefetch list'

/** A layer that a list speaks of. Its diff ID names the tar, so offsets in it hold for every blob of that tar. */
export type ListedLayer = { readonly diffId: Digest; readonly layerSize: number }

/** Bytes of one file, and where they lie. The file's name is what finds them again in another layer. */
export type ListedRange = {
  /** Position in the list's layers. */
  readonly layer: number
  /** As in `TocEntry`: latin1, no leading slash. */
  readonly path: string
  readonly fileSize: number
  readonly fileOffset: number
  /** In the layer file, the uncompressed tar. */
  readonly layerOffset: number
  readonly length: number
}

/** What a start of an image read, in order of first use. No byte is named twice by a list that we wrote. */
export type PrefetchList = {
  /** Those of the image, bottom first. */
  readonly layers: readonly ListedLayer[]
  readonly ranges: readonly ListedRange[]
}

/** Bytes and files that a list names. */
export function listTotals({ ranges }: PrefetchList): { bytes: number; files: number } {
  return {
    bytes: ranges.reduce((sum, { length }) => sum + length, 0),
    files: new Set(ranges.map(fileKey)).size,
  }
}

/** The list as bytes; of one that is beyond the limits, the first ranges that are within. */
export function encodePrefetchList({ layers, ranges: all }: PrefetchList): Uint8Array {
  const ranges = all.slice(0, RANGES_MAX)
  const files = new Map<string, ListedRange>()
  for (const range of ranges) if (!files.has(fileKey(range))) files.set(fileKey(range), range)
  const sorted = [...files].toSorted(([a], [b]) => (a < b ? -1 : 1))
  const numbers = new Map(sorted.map(([key], number) => [key, number]))
  const writer = new ByteWriter()
  writer.raw(magic)
  writer.uint(layers.length)
  for (const { diffId, layerSize } of layers) {
    writer.latin1(diffId)
    writer.uint(layerSize)
  }
  writer.uint(sorted.length)
  let before = ''
  for (const [, { layer, path, fileSize }] of sorted) {
    const shared = sharedLength(before, path)
    writer.uint(layer)
    writer.uint(shared)
    writer.latin1(path.slice(shared))
    writer.uint(fileSize)
    before = path
  }
  writer.uint(ranges.length)
  let end = 0
  for (const range of ranges) {
    writer.uint(numbers.get(fileKey(range)) ?? 0)
    writer.int(range.layerOffset - end)
    writer.uint(range.fileOffset)
    writer.uint(range.length)
    end = range.layerOffset + range.length
  }
  const stored = zlib.zstdCompressSync(writer.written())
  if (stored.length <= LIST_BYTES_MAX || ranges.length < 2) return stored
  return encodePrefetchList({ layers, ranges: ranges.slice(0, ranges.length >> 1) })
}

/**
 * The way back. Nothing in it is believed: throws LayerError DATA_LOSS for bytes that are no list, RESOURCE_EXHAUSTED over a
 * limit, and INVALID_ARGUMENT, naming the file, for a path that is none or a range outside of its file or layer.
 */
export function decodePrefetchList(stored: Uint8Array): PrefetchList {
  const reader = new ByteReader(listBody(stored), subject)
  if (!magic.equals(reader.raw(magic.length)))
    throw reader.broken('it is of another kind or version')
  const layers = times(reader.count(LAYERS_MAX, 9), () => readLayer(reader))
  let before = ''
  const files = times(reader.count(FILES_MAX, 4), () => {
    const layer = reader.uint()
    if (layer >= layers.length) throw reader.broken(`it names layer ${layer} of ${layers.length}`)
    const shared = reader.uint()
    if (shared > before.length) throw reader.broken('a path shares more than there is')
    const path = before.slice(0, shared) + reader.latin1()
    if (path === '' || cleanPath(path, { path, offset: 0 }) !== path) {
      throw lie(path, 'has a name that is not clean')
    }
    before = path
    return { layer, path, fileSize: reader.uint() }
  })
  let end = 0
  const ranges = times(reader.count(RANGES_MAX, 4), () => {
    const file = files[reader.uint()]
    if (file === undefined) throw reader.broken('a range is of no file')
    const layerOffset = end + reader.int()
    const range = { ...file, layerOffset, fileOffset: reader.uint(), length: reader.uint() }
    checkRange(range, layers[file.layer]?.layerSize ?? 0)
    end = layerOffset + range.length
    return range
  })
  reader.end()
  return { layers, ranges }
}

function readLayer(reader: ByteReader): ListedLayer {
  const diffId = reader.latin1()
  if (!isDigest(diffId)) throw reader.broken('a layer is named by no digest')
  return { diffId, layerSize: reader.uint() }
}

function checkRange(range: ListedRange, layerSize: number): void {
  const { path, fileSize, fileOffset, layerOffset, length } = range
  if (length === 0) throw lie(path, 'has a range of no bytes')
  if (fileOffset + length > fileSize) {
    throw lie(path, `has a range up to byte ${fileOffset + length} of ${fileSize}`)
  }
  if (layerOffset < 0 || layerOffset + length > layerSize) {
    const end = layerOffset + length
    throw lie(path, `has the range ${layerOffset} to ${end} in a layer of ${layerSize} bytes`)
  }
}

function lie(path: string, what: string): LayerError {
  const shown = JSON.stringify(Buffer.from(path, 'latin1').toString('utf8'))
  return new LayerError('INVALID_ARGUMENT', `${subject}: ${shown} ${what}`, { path })
}

function listBody(stored: Uint8Array): Uint8Array {
  if (stored.length > LIST_BYTES_MAX) {
    const message = `${subject}: it has ${stored.length} bytes, the limit is ${LIST_BYTES_MAX}`
    throw new LayerError('RESOURCE_EXHAUSTED', message)
  }
  const [frame, ...more] = zstdFrames(stored)
  const size = frame?.contentSize
  if (frame?.kind !== 'zstd' || more.length > 0 || size === undefined) {
    throw new LayerError('DATA_LOSS', `${subject}: it is not one zstd frame that declares its size`)
  }
  if (size > LIST_BODY_BYTES_MAX) {
    const message = `${subject}: it decodes to ${size} bytes, the limit is ${LIST_BODY_BYTES_MAX}`
    throw new LayerError('RESOURCE_EXHAUSTED', message)
  }
  return decodeZstdFrame(stored, size)
}

/** A path holds no NUL, so layer and path cannot run into each other. */
function fileKey({ layer, path }: Pick<ListedRange, 'layer' | 'path'>): string {
  return `${path}\0${layer}`
}

function sharedLength(before: string, path: string): number {
  const max = Math.min(before.length, path.length)
  let length = 0
  while (length < max && before.charCodeAt(length) === path.charCodeAt(length)) length++
  return length
}

function times<T>(count: number, make: () => T): T[] {
  return Array.from({ length: count }, make)
}
