import type { ByteRange } from '../byte-range.ts'
import { LayerError } from '../errors.ts'
import type { EntryPlace } from './entry-limits.ts'
import {
  checkXattr,
  cleanPath,
  EXTENTS_MAX,
  entryError,
  OWNER_MAX,
  PATH_BYTES_MAX,
  TAR_BLOCK_BYTES,
  TIME_MAX,
  TocBudget,
} from './entry-limits.ts'
import type { EntryKind, Extent, LayerToc, TocEntry } from './layer-toc.ts'
import type { PaxRecords, TarTime } from './pax-records.ts'
import { parsePaxRecords, paxNumber, paxTime } from './pax-records.ts'
import {
  gnuSparseRegions,
  paxSparseRegions,
  readSparseMap,
  type SparseRegion,
  sparseExtents,
} from './sparse-map.ts'
import type { TarHeader } from './tar-header.ts'
import { isZeros, parseTarHeader, tarNumber } from './tar-header.ts'

/** Body of an extension header (PAX, GNU long name), in bytes. 1 MiB: 15 xattrs of 64 KiB; Go's archive/tar has the same. */
export const EXTENSION_BYTES_MAX: number = 1024 * 1024

/** An entry, and where and how the tar has it: what a publisher needs beyond a table of contents. */
export type TarMember = {
  readonly entry: TocEntry
  /** Where its first header starts, extension headers included. */
  readonly headerStart: number
  /** The stored content, a sparse file's regions one after the other; empty where there is none. */
  readonly content: ByteRange
  /** The fields as Go's archive/tar reports them: zstd:chunked readers compare them with the TOC. */
  readonly written: WrittenFields
}

export type WrittenFields = {
  readonly name: string
  readonly linkName: string
  readonly mode: number
  readonly devMajor: number
  readonly devMinor: number
  readonly accessTime?: TarTime
  readonly changeTime?: TarTime
  /** Why Go's archive/tar, or tar-split, would see another entry than we do; undefined if it does not. */
  readonly peculiarity?: string
}

/** Reads a part of an uncompressed tar. Shorter than `length` only where the tar ends. */
export type ReadTar = (offset: number, length: number) => Uint8Array | Promise<Uint8Array>

/**
 * Reads the table of contents of a tar by random access: headers and sparse maps are read, contents never.
 * Throws LayerError as `TarStreamWalk`, and CANCELLED when `signal` aborts; passes on what `read` throws.
 */
export async function walkTar(read: ReadTar, size: number, signal: AbortSignal): Promise<LayerToc> {
  const entries: TocEntry[] = []
  const walk = tarSteps(new TocBudget())
  let step = walk.next()
  while (step.done !== true) {
    if ('member' in step.value) {
      const { entry, content, headerStart } = step.value.member
      if (content.end > size) throw truncated({ path: entry.path, offset: headerStart }, size)
      entries.push(entry)
      step = walk.next(noBytes)
    } else {
      if (signal.aborted) throw new LayerError('CANCELLED', 'reading the tar was cancelled')
      const { start, end } = step.value.want
      const bytes = start < size ? await read(start, Math.min(end, size) - start) : noBytes
      step = walk.next(asBuffer(bytes))
    }
  }
  return { entries, layerSize: size }
}

/**
 * Reads the table of contents of a tar that streams by: `push` its bytes in order, then call `end`.
 * Reads v7, ustar, star, GNU (long names, base-256, sparse) and PAX (POSIX.1-2001, with GNU.sparse.*, SCHILY.xattr.* and
 * LIBARCHIVE.xattr.*). What follows the end-of-archive blocks is ignored, as tar and containerd do.
 * Throws LayerError with the entry and its byte offset: INVALID_ARGUMENT (malformed or hostile), UNIMPLEMENTED (an entry of a
 * type that containerd cannot unpack either), RESOURCE_EXHAUSTED (beyond a limit), DATA_LOSS (truncated).
 */
export class TarStreamWalk {
  readonly #onMember: (member: TarMember) => void
  readonly #entries: TocEntry[] = []
  readonly #walk: TarSteps<void>
  #step: IteratorResult<TarStep, void>
  /** Bytes pushed so far. */
  #position = 0
  /** The first bytes of what the walk wants, when it spans several pushes. */
  #held: Buffer[] = []
  #heldBytes = 0
  #last: TarMember | undefined

  /** `onMember` hears of each entry as soon as its header is read, before its content is pushed or in the same push. */
  constructor(
    onMember: (member: TarMember) => void = () => {},
    budget: TocBudget = new TocBudget(),
  ) {
    this.#onMember = onMember
    this.#walk = tarSteps(budget)
    this.#step = this.#advance(this.#walk.next())
  }

  push(bytes: Uint8Array): void {
    const chunk = asBuffer(bytes)
    const chunkStart = this.#position
    this.#position += chunk.length
    while (this.#step.done !== true && 'want' in this.#step.value) {
      const { start, end } = this.#step.value.want
      const from = Math.max(start + this.#heldBytes, chunkStart)
      if (from >= this.#position) return
      const part = chunk.subarray(from - chunkStart, Math.min(end, this.#position) - chunkStart)
      if (this.#heldBytes + part.length < end - start) {
        // The chunk is the caller's again after this call.
        this.#held.push(Buffer.from(part))
        this.#heldBytes += part.length
        return
      }
      this.#step = this.#advance(this.#walk.next(this.#joined(part)))
    }
  }

  /** The tar is over. Throws LayerError DATA_LOSS if it stops inside an entry. */
  end(): LayerToc {
    if (this.#last !== undefined && this.#last.content.end > this.#position) {
      const place = { path: this.#last.entry.path, offset: this.#last.headerStart }
      throw truncated(place, this.#position)
    }
    while (this.#step.done !== true) {
      this.#step = this.#advance(this.#walk.next(this.#joined(noBytes)))
    }
    return { entries: this.#entries, layerSize: this.#position }
  }

  #joined(part: Buffer): Buffer {
    if (this.#heldBytes === 0) return part
    const joined = Buffer.concat([...this.#held, part])
    this.#held = []
    this.#heldBytes = 0
    return joined
  }

  /** Hands out members until the walk wants bytes or is done. */
  #advance(first: IteratorResult<TarStep, void>): IteratorResult<TarStep, void> {
    let step = first
    while (step.done !== true && 'member' in step.value) {
      this.#last = step.value.member
      this.#entries.push(step.value.member.entry)
      this.#onMember(step.value.member)
      step = this.#walk.next(noBytes)
    }
    return step
  }
}

/** The walk wants these bytes next (answered shorter only where the tar ends), or has found an entry. */
type TarStep = { readonly want: ByteRange } | { readonly member: TarMember }

type TarSteps<Result> = Generator<TarStep, Result, Buffer>

const noBytes: Buffer = Buffer.alloc(0)

/** Extension headers that apply to the next entry. */
type Extensions = {
  records: PaxRecords
  longName: string | undefined
  longLink: string | undefined
}

/** The walk itself, without I/O: both drivers above answer its wants. */
function* tarSteps(budget: TocBudget): TarSteps<void> {
  const globals = new Map<string, string>()
  let offset = 0
  for (;;) {
    const headerStart = offset
    const next: Extensions = { records: [], longName: undefined, longLink: undefined }
    let header = yield* readHeader(offset)
    let extended = false
    while (header !== undefined && isExtension(header.typeflag)) {
      yield* readExtension(header, next, globals)
      offset += TAR_BLOCK_BYTES + padded(header.size)
      header = yield* readHeader(offset)
      extended = true
    }
    if (header === undefined) {
      if (!extended) return
      throw truncated({ path: '', offset: headerStart }, offset)
    }
    const { member, end } = yield* readMember(header, next, globals, headerStart)
    budget.spend(member.entry, headerStart)
    yield { member }
    offset = end
  }
}

/** The header at `offset`; undefined at the end of the archive. */
function* readHeader(offset: number): TarSteps<TarHeader | undefined> {
  const place = { path: '', offset }
  const block = yield { want: { start: offset, end: offset + TAR_BLOCK_BYTES } }
  // A tar without its end-of-archive blocks is whole as long as it ends between entries (as in Go's archive/tar).
  if (block.length === 0) return undefined
  if (block.length < TAR_BLOCK_BYTES) throw truncated(place, offset + block.length)
  if (!isZeros(block)) return parseTarHeader(block, offset)
  const second = yield {
    want: { start: offset + TAR_BLOCK_BYTES, end: offset + 2 * TAR_BLOCK_BYTES },
  }
  if (isZeros(second)) return undefined
  throw entryError('INVALID_ARGUMENT', place, 'is a single zero block where two end an archive')
}

function isExtension(typeflag: string): boolean {
  return typeflag === 'x' || typeflag === 'g' || typeflag === 'L' || typeflag === 'K'
}

function* readExtension(
  header: TarHeader,
  next: Extensions,
  globals: Map<string, string>,
): TarSteps<void> {
  const place = { path: header.name, offset: header.offset }
  if (header.size < 0 || header.size > EXTENSION_BYTES_MAX) {
    const what = `is an extension header of ${header.size} bytes, the limit is ${EXTENSION_BYTES_MAX}`
    throw entryError('RESOURCE_EXHAUSTED', place, what)
  }
  const start = header.offset + TAR_BLOCK_BYTES
  const body = yield { want: { start, end: start + header.size } }
  if (body.length < header.size) throw truncated(place, start + body.length)
  if (header.typeflag === 'L') {
    next.longName = untilNul(body)
  } else if (header.typeflag === 'K') {
    next.longLink = untilNul(body)
  } else if (header.typeflag === 'x') {
    next.records = parsePaxRecords(body, place)
  } else {
    for (const [key, value] of parsePaxRecords(body, place)) globals.set(key, value)
    let bytes = 0
    for (const [key, value] of globals) bytes += key.length + value.length
    if (bytes > EXTENSION_BYTES_MAX) {
      const what = `brings the global PAX records to ${bytes} bytes, the limit is ${EXTENSION_BYTES_MAX}`
      throw entryError('RESOURCE_EXHAUSTED', place, what)
    }
  }
}

const kinds: ReadonlyMap<string, EntryKind> = new Map([
  ['\0', 'reg'],
  ['0', 'reg'],
  // Contiguous files (POSIX.1-1988) and old GNU sparse files are regular files.
  ['7', 'reg'],
  ['S', 'reg'],
  ['1', 'hardlink'],
  ['2', 'symlink'],
  ['3', 'char'],
  ['4', 'block'],
  ['5', 'dir'],
  ['6', 'fifo'],
])

function* readMember(
  header: TarHeader,
  next: Extensions,
  globals: ReadonlyMap<string, string>,
  headerStart: number,
): TarSteps<{ member: TarMember; end: number }> {
  const records = new Map(globals)
  for (const [key, value] of next.records) records.set(key, value)
  // An empty value takes the record back (POSIX.1-2001), so the header's field holds; an attribute may just be empty.
  for (const [key, value] of records) if (value === '' && !isXattr(key)) records.delete(key)

  const unsparseName = next.longName ?? records.get('path') ?? header.name
  const name = records.get('GNU.sparse.name') ?? unsparseName
  const place = { path: name, offset: headerStart }
  const kind = entryKind(header, unsparseName, place)
  const path = cleanPath(name, place)
  if (path === '' && kind !== 'dir') {
    throw entryError('INVALID_ARGUMENT', place, `replaces the root directory by a ${kind}`)
  }

  const linkName = next.longLink ?? records.get('linkpath') ?? header.linkName
  const declared = paxField(records, 'size', paxNumber, place) ?? header.size
  if (declared < 0) throw entryError('INVALID_ARGUMENT', place, `has the size ${declared}`)
  const bodyStart = header.offset + TAR_BLOCK_BYTES
  const bodyEnd = bodyStart + (kind === 'reg' ? declared : 0)
  if (!Number.isSafeInteger(padded(bodyEnd))) {
    throw entryError('INVALID_ARGUMENT', place, `has the absurd size ${declared}`)
  }
  const body =
    kind === 'reg'
      ? yield* readContent(header, next.records, records, { start: bodyStart, end: bodyEnd }, place)
      : noContent(bodyStart)
  const mtime = paxField(records, 'mtime', paxTime, place) ?? { sec: header.mtime, nsec: 0 }
  if (Math.abs(mtime.sec) > TIME_MAX) {
    throw entryError('INVALID_ARGUMENT', place, `has the absurd modification time ${mtime.sec}`)
  }
  const xattrs = entryXattrs(records, place)
  const linkTarget = entryLinkTarget(kind, linkName, place)
  const entry: TocEntry = {
    path,
    kind,
    mode: header.mode & 0o7777,
    uid: owner(paxField(records, 'uid', paxNumber, place) ?? header.uid, 'user', place),
    gid: owner(paxField(records, 'gid', paxNumber, place) ?? header.gid, 'group', place),
    mtimeSec: mtime.sec,
    mtimeNsec: mtime.nsec,
    size: body.size,
    ...(linkTarget === undefined ? {} : { linkTarget }),
    ...(kind === 'char' || kind === 'block' ? deviceNumbers(header, place) : {}),
    ...(xattrs.size > 0 ? { xattrs } : {}),
    ...(kind === 'reg' ? { extents: body.extents } : {}),
  }
  const accessTime = paxField(records, 'atime', paxTime, place)
  const changeTime = paxField(records, 'ctime', paxTime, place)
  const peculiarity = entryPeculiarity(header, declared, body.sparse, globals, records)
  const written: WrittenFields = {
    name,
    linkName,
    mode: header.mode,
    devMajor: header.devMajor,
    devMinor: header.devMinor,
    ...(accessTime === undefined ? {} : { accessTime }),
    ...(changeTime === undefined ? {} : { changeTime }),
    ...(peculiarity === undefined ? {} : { peculiarity }),
  }
  const member = { entry, headerStart, content: body.stored, written }
  return { member, end: padded(body.stored.end) }
}

function entryKind(header: TarHeader, name: string, place: EntryPlace): EntryKind {
  const kind = kinds.get(header.typeflag)
  if (kind === undefined || (header.typeflag === 'S' && header.format !== 'gnu')) {
    const type = header.typeflag.charCodeAt(0)
    const what = `has the tar type ${type}, which no container runtime unpacks`
    throw entryError('UNIMPLEMENTED', place, what)
  }
  // Before ustar a directory was a regular file whose name ends in a slash.
  return header.typeflag === '\0' && name.endsWith('/') ? 'dir' : kind
}

/** A regular file's bytes: those stored in the tar, and which part of the file they are. */
type Content = {
  readonly size: number
  readonly stored: ByteRange
  readonly extents: readonly Extent[]
  readonly sparse: boolean
}

function noContent(at: number): Content {
  return { size: 0, stored: { start: at, end: at }, extents: [], sparse: false }
}

function* readContent(
  header: TarHeader,
  local: PaxRecords,
  records: ReadonlyMap<string, string>,
  body: ByteRange,
  place: EntryPlace,
): TarSteps<Content> {
  if (header.typeflag === 'S') return yield* readGnuSparse(header, body, place)
  const major = records.get('GNU.sparse.major')
  const minor = records.get('GNU.sparse.minor') ?? '0'
  const realSize =
    paxField(records, 'GNU.sparse.realsize', paxNumber, place) ??
    paxField(records, 'GNU.sparse.size', paxNumber, place)
  if (major === '1' && minor === '0') {
    const { regions, mapBytes } = yield* wanting(readSparseMap(body, place), place)
    const stored = { start: body.start + mapBytes, end: body.end }
    return sparseContent(regions, stored, realSize, place)
  }
  if (major !== undefined && major !== '0') {
    const what = `is a sparse file of the unknown format ${major}.${minor}`
    throw entryError('UNIMPLEMENTED', place, what)
  }
  const regions = paxSparseRegions(local, place)
  if (regions !== undefined) return sparseContent(regions, body, realSize, place)
  const size = body.end - body.start
  const extents = size === 0 ? [] : [{ fileOffset: 0, layerOffset: body.start, length: size }]
  return { size, stored: body, extents, sparse: false }
}

/** Old GNU sparse files: 4 regions in the header, more in blocks of 21 that stand before the data. */
function* readGnuSparse(header: TarHeader, body: ByteRange, place: EntryPlace): TarSteps<Content> {
  const regions = gnuSparseRegions(header.block, 386, 4, place)
  const realSize = tarNumber(header.block, 483, 495)
  let extended = header.block[482] !== 0
  let start = body.start
  while (extended) {
    const extension = yield* wantBlock(start, place)
    for (const region of gnuSparseRegions(extension, 0, 21, place)) regions.push(region)
    if (regions.length > EXTENTS_MAX) {
      throw entryError('RESOURCE_EXHAUSTED', place, `has more than ${EXTENTS_MAX} sparse regions`)
    }
    extended = extension[504] !== 0
    start += TAR_BLOCK_BYTES
  }
  const stored = { start, end: start + (body.end - body.start) }
  return sparseContent(regions, stored, realSize, place)
}

function sparseContent(
  regions: readonly SparseRegion[],
  stored: ByteRange,
  size: number | undefined,
  place: EntryPlace,
): Content {
  if (size === undefined || size < 0) {
    throw entryError('INVALID_ARGUMENT', place, 'is a sparse file without a usable real size')
  }
  return { size, stored, extents: sparseExtents(regions, stored, size, place), sparse: true }
}

function* wantBlock(start: number, place: EntryPlace): TarSteps<Buffer> {
  const block = yield { want: { start, end: start + TAR_BLOCK_BYTES } }
  if (block.length < TAR_BLOCK_BYTES) throw truncated(place, start + block.length)
  return block
}

function* wanting<Result>(
  reads: Generator<ByteRange, Result, Buffer>,
  place: EntryPlace,
): TarSteps<Result> {
  let step = reads.next()
  while (step.done !== true) step = reads.next(yield* wantBlock(step.value.start, place))
  return step.value
}

function entryLinkTarget(kind: EntryKind, linkName: string, place: EntryPlace): string | undefined {
  if (kind === 'hardlink') {
    const target = cleanPath(linkName, place, 'hard link target')
    if (target !== '') return target
    throw entryError('INVALID_ARGUMENT', place, 'is a hard link to the root directory')
  }
  if (kind !== 'symlink') return undefined
  if (linkName === '' || linkName.includes('\0') || linkName.length >= PATH_BYTES_MAX) {
    const what = `is a symlink whose target is empty, has a NUL or ${PATH_BYTES_MAX} bytes or more`
    throw entryError('INVALID_ARGUMENT', place, what)
  }
  return linkName
}

const SCHILY_XATTR = 'SCHILY.xattr.'
const LIBARCHIVE_XATTR = 'LIBARCHIVE.xattr.'

function isXattr(key: string): boolean {
  return key.startsWith(SCHILY_XATTR) || key.startsWith(LIBARCHIVE_XATTR)
}

/** SCHILY records hold the value itself; LIBARCHIVE records a URL-encoded name and a base64 value, and yield to them. */
function entryXattrs(
  records: ReadonlyMap<string, string>,
  place: EntryPlace,
): ReadonlyMap<string, Uint8Array> {
  const xattrs = new Map<string, Uint8Array>()
  for (const [key, value] of records) {
    if (key.startsWith(LIBARCHIVE_XATTR)) {
      const encoded = key.slice(LIBARCHIVE_XATTR.length)
      xattrs.set(percentDecoded(encoded), Buffer.from(value, 'base64'))
    }
  }
  for (const [key, value] of records) {
    if (key.startsWith(SCHILY_XATTR)) {
      xattrs.set(key.slice(SCHILY_XATTR.length), Buffer.from(value, 'latin1'))
    }
  }
  for (const [name, value] of xattrs) checkXattr(name, value, place)
  return xattrs
}

function percentDecoded(text: string): string {
  return text.replaceAll(/%([0-9A-Fa-f]{2})/g, (_, hex: string) =>
    String.fromCharCode(Number.parseInt(hex, 16)),
  )
}

/** The bits Linux has for them: 12 for the major, 20 for the minor number. linux/kdev_t.h. */
function deviceNumbers(
  { devMajor, devMinor }: TarHeader,
  place: EntryPlace,
): { devMajor: number; devMinor: number } {
  if (devMajor < 0 || devMajor > 0xfff || devMinor < 0 || devMinor > 0xfffff) {
    const what = `has the device number ${devMajor}:${devMinor}, which Linux does not have`
    throw entryError('INVALID_ARGUMENT', place, what)
  }
  return { devMajor, devMinor }
}

function owner(id: number, whose: 'user' | 'group', place: EntryPlace): number {
  if (id >= 0 && id <= OWNER_MAX) return id
  throw entryError(
    'INVALID_ARGUMENT',
    place,
    `has the ${whose} ID ${id}, which Linux does not have`,
  )
}

function paxField<Value>(
  records: ReadonlyMap<string, string>,
  key: string,
  parse: (text: string) => Value | undefined,
  place: EntryPlace,
): Value | undefined {
  const text = records.get(key)
  if (text === undefined) return undefined
  const value = parse(text)
  if (value !== undefined) return value
  throw entryError('INVALID_ARGUMENT', place, `has a malformed PAX record ${key}`)
}

function entryPeculiarity(
  header: TarHeader,
  declared: number,
  sparse: boolean,
  globals: ReadonlyMap<string, string>,
  records: ReadonlyMap<string, string>,
): string | undefined {
  if (sparse) return 'is a sparse file'
  if (globals.size > 0) return 'follows a global PAX header'
  if (header.hasOldTimes) return 'has GNU or star access times'
  if (!isBody(header.typeflag) && declared !== 0) return 'has a size and no content'
  for (const key of records.keys()) {
    if (!key.startsWith(LIBARCHIVE_XATTR)) continue
    const twin = SCHILY_XATTR + percentDecoded(key.slice(LIBARCHIVE_XATTR.length))
    if (!records.has(twin)) return 'has an extended attribute that only libarchive reads'
  }
  return undefined
}

function isBody(typeflag: string): boolean {
  return typeflag === '0' || typeflag === '\0' || typeflag === '7'
}

function truncated(place: EntryPlace, end: number): LayerError {
  return entryError('DATA_LOSS', place, `is cut off: the tar ends at byte ${end}`)
}

function padded(bytes: number): number {
  return Math.ceil(bytes / TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
}

function untilNul(body: Buffer): string {
  const nul = body.indexOf(0)
  return body.toString('latin1', 0, nul === -1 ? body.length : nul)
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes)
    ? bytes
    : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
