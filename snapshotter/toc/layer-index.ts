import { createHash } from 'node:crypto'
import zlib from 'node:zlib'
import type { CodedError } from '../errors.ts'
import { LayerError } from '../errors.ts'
import { ByteReader } from './byte-reader.ts'
import { ByteWriter } from './byte-writer.ts'
import type { EntryPlace } from './entry-limits.ts'
import {
  checkXattr,
  cleanPath,
  ENTRIES_MAX,
  EXTENTS_MAX,
  entryError,
  OWNER_MAX,
  PATH_BYTES_MAX,
  TAR_BLOCK_BYTES,
  TIME_MAX,
  TocBudget,
} from './entry-limits.ts'
import type { EntryKind, Extent, LayerToc, TocEntry } from './layer-toc.ts'
import { decodeZstdFrame, zstdFrames } from './zstd-frames.ts'
import { readUnits, writeUnits, ZstdLayerMap } from './zstd-layer-map.ts'

/*
 * The index of a published layer: which blob bytes make which layer bytes, and the layer's table of contents.
 * One skippable zstd frame between the layer's frames and the zstd:chunked tables; its content is one zstd frame of
 *
 *   "IPDRIDX1"
 *   units:   count, then per unit blob bytes, layer bytes
 *   entries: count, then per entry in tar order
 *            path as bytes shared with the path before and the rest; kind; mode; uid; gid; mtime seconds (int) and
 *            nanoseconds; number of xattrs and each name and value; and by kind
 *            reg: size, number of extents and each gap after the last in the file, gap after the last in the layer, length
 *            symlink, hardlink: target        char, block: major, minor
 *
 * All numbers are LEB128 (ByteWriter). A descriptor annotation has its place and digest, so the manifest vouches for it.
 */

/** The descriptor annotation that says where a layer's index is: `offset:length:sha256`, of the frame's content. */
export const LAYER_INDEX_ANNOTATION = 'io.ipdr.layer.index'

/** Nibble of the skippable frame's magic; zstd:chunked uses 0. */
export const LAYER_INDEX_FRAME_VARIANT = 1

/** An index as stored, in bytes. 64 MiB: 4,000,000 entries × 16 B. */
export const INDEX_BYTES_MAX: number = 64 * 1024 * 1024

/** An index decompressed, in bytes. 512 MiB: 4,000,000 entries × 128 B. */
const INDEX_BODY_BYTES_MAX = 512 * 1024 * 1024

/** zstd's level for what is sent to others. */
const SMALL_LEVEL = 12

const magic = Buffer.from('IPDRIDX1', 'latin1')
const tocMagic = Buffer.from('IPDRTOC1', 'latin1')
const subject = 'layer index'
const kinds: readonly EntryKind[] = ['reg', 'dir', 'symlink', 'hardlink', 'char', 'block', 'fifo']

/** The table of contents and the map of one layer, as its index holds them. */
export type LayerIndex = { readonly toc: LayerToc; readonly map: ZstdLayerMap }

/** The index as it is stored inside its skippable frame; of the map, only the units. */
export function encodeLayerIndex(toc: LayerToc, units: ZstdLayerMap): Uint8Array {
  const writer = new ByteWriter()
  writer.raw(magic)
  writeUnits(writer, units)
  writeEntries(writer, toc.entries)
  return zlib.zstdCompressSync(writer.written(), {
    params: { [zlib.constants.ZSTD_c_compressionLevel]: SMALL_LEVEL },
  })
}

/** The value of the annotation for an index whose bytes start at `offset` of the blob. */
export function layerIndexPosition(index: Uint8Array, offset: number): string {
  return `${offset}:${index.length}:${createHash('sha256').update(index).digest('hex')}`
}

/**
 * The way back from `encodeLayerIndex`. `framesEnd` is where the layer's frames end in the blob: the units must make up exactly
 * what lies before. Nothing in it is believed: throws LayerError DATA_LOSS for bytes that are no index, INVALID_ARGUMENT for
 * entries that overlap, lie outside the layer or off the 512-byte grid, or that no tar walk would have given.
 */
export function decodeLayerIndex(
  stored: Uint8Array,
  place: { readonly framesEnd: number; readonly blobSize: number },
): LayerIndex {
  const reader = new ByteReader(indexBody(stored), subject)
  if (!magic.equals(reader.raw(magic.length)))
    throw reader.broken('it is of another kind or version')
  const map = new ZstdLayerMap(readUnits(reader), place.blobSize)
  if (map.framesEnd !== place.framesEnd) {
    const what = `its units cover ${map.framesEnd} bytes of the blob, the layer's frames ${place.framesEnd}`
    throw new LayerError('INVALID_ARGUMENT', `${subject}: ${what}`)
  }
  const entries = readEntries(reader, map.layerSize)
  reader.end()
  return { toc: { entries, layerSize: map.layerSize }, map }
}

/** A table of contents alone: `quick` for this node's disk, `small` for a network. */
export function encodeToc(toc: LayerToc, effort: 'quick' | 'small' = 'quick'): Uint8Array {
  const writer = new ByteWriter()
  writer.raw(tocMagic)
  writer.uint(toc.layerSize)
  writeEntries(writer, toc.entries)
  const level = effort === 'small' ? SMALL_LEVEL : zlib.constants.ZSTD_CLEVEL_DEFAULT
  return zlib.zstdCompressSync(writer.written(), {
    params: { [zlib.constants.ZSTD_c_compressionLevel]: level },
  })
}

/** The way back from `encodeToc`. Throws LayerError as `decodeLayerIndex`. */
export function decodeToc(stored: Uint8Array): LayerToc {
  const reader = new ByteReader(indexBody(stored), 'table of contents')
  if (!tocMagic.equals(reader.raw(tocMagic.length)))
    throw reader.broken('it is of another kind or version')
  const layerSize = reader.uint()
  const entries = readEntries(reader, layerSize)
  reader.end()
  return { entries, layerSize }
}

function writeEntries(writer: ByteWriter, entries: readonly TocEntry[]): void {
  writer.uint(entries.length)
  let path = ''
  let layerEnd = 0
  for (const entry of entries) {
    const shared = sharedLength(path, entry.path)
    writer.uint(shared)
    writer.latin1(entry.path.slice(shared))
    path = entry.path
    layerEnd = writeEntry(writer, entry, layerEnd)
  }
}

function readEntries(reader: ByteReader, layerSize: number): TocEntry[] {
  const count = reader.count(ENTRIES_MAX, 10)
  const entries: TocEntry[] = []
  const layer = { end: 0, size: layerSize }
  const budget = new TocBudget()
  let path = ''
  for (let index = 0; index < count; index++) {
    const shared = reader.uint()
    if (shared > path.length) throw reader.broken('a path shares more than there is')
    path = path.slice(0, shared) + reader.latin1()
    const entry = readEntry(reader, path, layer)
    budget.spend(entry, layer.end)
    entries.push(entry)
  }
  return entries
}

function indexBody(stored: Uint8Array): Uint8Array {
  const [frame, ...more] = zstdFrames(stored)
  const size = frame?.contentSize
  if (frame?.kind !== 'zstd' || more.length > 0 || size === undefined) {
    throw new LayerError('DATA_LOSS', `${subject}: it is not one zstd frame that declares its size`)
  }
  if (size > INDEX_BODY_BYTES_MAX) {
    const message = `${subject}: it decodes to ${size} bytes, the limit is ${INDEX_BODY_BYTES_MAX}`
    throw new LayerError('RESOURCE_EXHAUSTED', message)
  }
  return decodeZstdFrame(stored, size)
}

function sharedLength(before: string, path: string): number {
  const max = Math.min(before.length, path.length)
  let length = 0
  while (length < max && before.charCodeAt(length) === path.charCodeAt(length)) length++
  return length
}

/** Writes all but the path; returns where the entry's last extent ends in the layer. */
function writeEntry(writer: ByteWriter, entry: TocEntry, layerStart: number): number {
  let layerEnd = layerStart
  writer.uint(kinds.indexOf(entry.kind))
  writer.uint(entry.mode)
  writer.uint(entry.uid)
  writer.uint(entry.gid)
  writer.int(entry.mtimeSec)
  writer.uint(entry.mtimeNsec)
  writer.uint(entry.xattrs?.size ?? 0)
  for (const [name, value] of entry.xattrs ?? []) {
    writer.latin1(name)
    writer.bytes(value)
  }
  if (entry.kind === 'reg') {
    const extents = entry.extents ?? []
    writer.uint(entry.size)
    writer.uint(extents.length)
    let fileEnd = 0
    for (const { fileOffset, layerOffset, length } of extents) {
      writer.uint(fileOffset - fileEnd)
      writer.uint(layerOffset - layerEnd)
      writer.uint(length)
      fileEnd = fileOffset + length
      layerEnd = layerOffset + length
    }
  }
  if (entry.kind === 'symlink' || entry.kind === 'hardlink') writer.latin1(entry.linkTarget ?? '')
  if (entry.kind === 'char' || entry.kind === 'block') {
    writer.uint(entry.devMajor ?? 0)
    writer.uint(entry.devMinor ?? 0)
  }
  return layerEnd
}

function readEntry(
  reader: ByteReader,
  path: string,
  layer: { end: number; readonly size: number },
): TocEntry {
  const place: EntryPlace = { path, offset: layer.end }
  const kind = kinds[reader.uint()]
  if (kind === undefined) throw lie(place, 'is of no known kind')
  if (cleanPath(path, place) !== path) throw lie(place, 'has a name that is not clean')
  if (path === '' && kind !== 'dir') throw lie(place, `replaces the root directory by a ${kind}`)
  const mode = upTo(reader, 0o7777, place, 'mode')
  const uid = upTo(reader, OWNER_MAX, place, 'user ID')
  const gid = upTo(reader, OWNER_MAX, place, 'group ID')
  const mtimeSec = reader.int()
  if (Math.abs(mtimeSec) > TIME_MAX) throw lie(place, `has the modification time ${mtimeSec}`)
  const mtimeNsec = upTo(reader, 999_999_999, place, 'nanoseconds')
  const xattrs = readXattrs(reader, place)
  // Filled in where it is, not copied with more: there are hundreds of thousands, and a pull waits for them.
  const entry: Filling<TocEntry> = { path, kind, mode, uid, gid, mtimeSec, mtimeNsec, size: 0 }
  if (xattrs !== undefined) entry.xattrs = xattrs
  switch (kind) {
    case 'reg':
      entry.size = reader.uint()
      entry.extents = readExtents(reader, entry.size, layer, place)
      break
    case 'symlink':
    case 'hardlink':
      entry.linkTarget = readLinkTarget(reader, kind, place)
      break
    case 'char':
    case 'block':
      entry.devMajor = upTo(reader, 0xfff, place, 'device number')
      entry.devMinor = upTo(reader, 0xfffff, place, 'device number')
      break
    default:
  }
  return entry
}

type Filling<Entry> = { -readonly [Key in keyof Entry]: Entry[Key] }

function readXattrs(
  reader: ByteReader,
  place: EntryPlace,
): ReadonlyMap<string, Uint8Array> | undefined {
  const count = reader.count(ENTRIES_MAX, 2)
  if (count === 0) return undefined
  const xattrs = new Map<string, Uint8Array>()
  for (let index = 0; index < count; index++) {
    const name = reader.latin1()
    // A copy: a view would keep the whole index in memory.
    const value = Uint8Array.from(reader.bytes())
    checkXattr(name, value, place)
    xattrs.set(name, value)
  }
  return xattrs
}

/** Gaps and lengths are not negative, so that extents cannot overlap or go back, in this file or between files. */
function readExtents(
  reader: ByteReader,
  size: number,
  layer: { end: number; readonly size: number },
  place: EntryPlace,
): Extent[] {
  const extents: Extent[] = []
  const count = reader.count(EXTENTS_MAX, 3)
  let fileEnd = 0
  for (let index = 0; index < count; index++) {
    const fileOffset = fileEnd + reader.uint()
    const layerOffset = layer.end + reader.uint()
    const length = reader.uint()
    fileEnd = fileOffset + length
    layer.end = layerOffset + length
    if (length === 0 || fileOffset % TAR_BLOCK_BYTES !== 0 || layerOffset % TAR_BLOCK_BYTES !== 0) {
      throw lie(
        place,
        `has the extent ${fileOffset}+${length} at ${layerOffset}, off the tar's grid`,
      )
    }
    if (fileEnd > size) throw lie(place, `has an extent up to ${fileEnd} in ${size} bytes`)
    if (layer.end > layer.size) {
      throw lie(place, `has an extent up to ${layer.end} in a layer of ${layer.size} bytes`)
    }
    extents.push({ fileOffset, layerOffset, length })
  }
  return extents
}

function readLinkTarget(
  reader: ByteReader,
  kind: 'symlink' | 'hardlink',
  place: EntryPlace,
): string {
  const target = reader.latin1()
  if (target === '' || target.includes('\0') || target.length >= PATH_BYTES_MAX) {
    throw lie(place, `is a ${kind} without a usable target`)
  }
  if (kind === 'hardlink' && cleanPath(target, place, 'hard link target') !== target) {
    throw lie(place, 'has a hard link target that is not clean')
  }
  return target
}

function upTo(reader: ByteReader, max: number, place: EntryPlace, what: string): number {
  const value = reader.uint()
  if (value <= max) return value
  throw lie(place, `has the ${what} ${value}, the largest is ${max}`)
}

function lie(place: EntryPlace, what: string): CodedError {
  return entryError('INVALID_ARGUMENT', place, `${what}, says the layer's index`)
}
