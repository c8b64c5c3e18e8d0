import type { Hash } from 'node:crypto'
import { createHash, hash } from 'node:crypto'
import type { LayerToc } from '../toc/layer-toc.ts'
import type { TarMember } from '../toc/walk-tar.ts'
import { TarStreamWalk } from '../toc/walk-tar.ts'
import { CHUNK_BYTES_MAX, ContentChunks } from './content-chunks.ts'
import { Crc64 } from './crc64.ts'
import { type ContentPart, contentParts, type StartReads } from './start-reads.ts'

/** Headers and padding in one frame, in bytes. 256 KiB: 500 directories or links in a row. */
const METADATA_BYTES_MAX = 256 * 1024

/** Headers and padding kept for one tar-split segment, in bytes. 4 MiB: 64 xattrs of 64 KiB; more only a hostile tar has. */
const SEGMENT_BYTES_MAX = 4 * 1024 * 1024

/** A part of the tar that becomes one zstd frame. */
export type LayerPiece = {
  readonly bytes: Buffer
  /** The file it belongs to; undefined for headers and padding. */
  readonly content?: {
    readonly member: TarMember
    readonly fileOffset: number
    /** SHA-256 of `bytes`, in hex. */
    readonly sha256: string
    /** Whether a start of the image reads it; undefined if nobody knows what starts read. */
    readonly isRead: boolean | undefined
  }
}

/** A member whose headers and content have gone by. */
export type PassedMember = {
  readonly member: TarMember
  /** All tar bytes between the content before and this one; undefined if they are too many to keep. */
  readonly segment: Uint8Array | undefined
  /** Of the content, if there is any: SHA-256 in hex, and tar-split's sum. */
  readonly sums?: { readonly sha256: string; readonly crc64: Uint8Array }
}

/**
 * Cuts a tar into the pieces that become frames: each content begins and ends one, long contents are cut by their bytes, and
 * headers and padding in between are pieces of their own. Push the tar in order, then call `end`.
 * Throws LayerError as TarStreamWalk does.
 */
export class LayerPieces {
  readonly #walk = new TarStreamWalk((member) => this.#ahead.push(member))
  readonly #onPassed: (passed: PassedMember) => void
  readonly #startReads: StartReads | undefined
  readonly #chunks = new ContentChunks()
  readonly #crc64 = new Crc64()
  /** Members whose content does not start before `#position`, in order. */
  #ahead: TarMember[] = []
  #position = 0
  /** Metadata for the next piece. */
  #metadata: Buffer[] = []
  #metadataBytes = 0
  /** Metadata since the last content. */
  #segment: Buffer[] = []
  #segmentBytes = 0
  #content: OpenContent | undefined
  #ready: LayerPiece[] = []

  /**
   * `onPassed` hears of each member in tar order, no later than the piece after its content is returned. With `startReads`, no piece
   * holds both bytes that a start reads and others.
   */
  constructor(onPassed: (passed: PassedMember) => void, startReads?: StartReads) {
    this.#onPassed = onPassed
    this.#startReads = startReads
  }

  /** Takes the next bytes of the tar, which may be changed afterwards; returns the pieces that are complete. */
  push(bytes: Uint8Array): LayerPiece[] {
    this.#walk.push(bytes)
    let left = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    let passedMembers = 0
    for (;;) {
      if (this.#content !== undefined) {
        const part = left.subarray(0, this.#content.left)
        this.#takeContent(this.#content, part)
        left = this.#pass(left, part)
      }
      if (this.#content !== undefined) break
      const next = this.#ahead[passedMembers]
      const part = left.subarray(
        0,
        next === undefined ? left.length : next.content.start - this.#position,
      )
      this.#takeMetadata(part)
      left = this.#pass(left, part)
      if (next === undefined || this.#position < next.content.start) break
      this.#start(next)
      passedMembers++
    }
    this.#ahead.splice(0, passedMembers)
    return this.#take()
  }

  /** The tar is over: its last pieces, its table of contents, and the bytes after its last content. */
  end(): { pieces: LayerPiece[]; toc: LayerToc; trailer: Uint8Array | undefined } {
    const toc = this.#walk.end()
    this.#endMetadata()
    return { pieces: this.#take(), toc, trailer: this.#takeSegment() }
  }

  #pass(left: Buffer, part: Buffer): Buffer<ArrayBuffer> {
    this.#position += part.length
    return left.subarray(part.length) as Buffer<ArrayBuffer>
  }

  #start(member: TarMember): void {
    const segment = this.#takeSegment()
    const size = member.content.end - member.content.start
    if (size === 0) {
      this.#onPassed({ member, segment })
      return
    }
    this.#endMetadata()
    const { path } = member.entry
    this.#content = {
      member,
      parts: this.#startReads && contentParts(this.#startReads({ path, size }), size),
      part: 0,
      segment,
      left: size,
      chunk: Buffer.allocUnsafe(Math.min(size, CHUNK_BYTES_MAX)),
      filled: 0,
      fileOffset: 0,
      whole: undefined,
    }
  }

  #takeContent(content: OpenContent, part: Buffer): void {
    this.#crc64.update(part)
    content.left -= part.length
    let rest = part
    while (rest.length > 0) {
      const copied = rest.copy(content.chunk, content.filled)
      content.filled += copied
      rest = rest.subarray(copied)
      if (content.filled === content.chunk.length) this.#cut(content, rest.length + content.left)
    }
    if (content.left > 0) return
    while (content.filled > 0) this.#cut(content, 0)
    const only = this.#ready.at(-1)?.content?.sha256 ?? ''
    const sha256 = content.whole === undefined ? only : content.whole.digest('hex')
    const { member, segment } = content
    this.#onPassed({ member, segment, sums: { sha256, crc64: this.#crc64.digest() } })
    this.#content = undefined
  }

  /** Makes a piece of the first chunk in the buffer; `toCome` bytes of the content are not in it yet. */
  #cut(content: OpenContent, toCome: number): void {
    const filled = content.chunk.subarray(0, content.filled)
    const { member, fileOffset } = content
    const part = content.parts?.[content.part]
    const partEnd = part === undefined ? filled.length : part.end - fileOffset
    const length = this.#chunks.next(filled.subarray(0, partEnd))
    const bytes = filled.subarray(0, length)
    const sha256 = hash('sha256', bytes)
    this.#ready.push({ bytes, content: { member, fileOffset, sha256, isRead: part?.isRead } })
    const isOnly = fileOffset === 0 && length === content.filled && toCome === 0
    if (!isOnly) {
      content.whole ??= createHash('sha256')
      content.whole.update(bytes)
    }
    const rest = filled.subarray(length)
    content.fileOffset += length
    if (part !== undefined && part.end <= content.fileOffset) content.part++
    content.chunk = Buffer.allocUnsafe(Math.min(rest.length + toCome, CHUNK_BYTES_MAX))
    content.filled = rest.copy(content.chunk)
  }

  #takeMetadata(part: Buffer): void {
    if (part.length === 0) return
    // A copy, since the bytes are the caller's.
    const held = Buffer.from(part)
    this.#segmentBytes += held.length
    if (this.#segmentBytes <= SEGMENT_BYTES_MAX) this.#segment.push(held)
    else this.#segment = []
    for (let start = 0; start < held.length; ) {
      const room = METADATA_BYTES_MAX - this.#metadataBytes
      const fitting = held.subarray(start, start + room)
      this.#metadata.push(fitting)
      this.#metadataBytes += fitting.length
      start += fitting.length
      if (this.#metadataBytes === METADATA_BYTES_MAX) this.#endMetadata()
    }
  }

  #takeSegment(): Uint8Array | undefined {
    const segment =
      this.#segmentBytes <= SEGMENT_BYTES_MAX ? Buffer.concat(this.#segment) : undefined
    this.#segment = []
    this.#segmentBytes = 0
    return segment
  }

  #endMetadata(): void {
    if (this.#metadataBytes === 0) return
    this.#ready.push({ bytes: Buffer.concat(this.#metadata) })
    this.#metadata = []
    this.#metadataBytes = 0
  }

  #take(): LayerPiece[] {
    const pieces = this.#ready
    this.#ready = []
    return pieces
  }
}

/** A content that is going by. */
type OpenContent = {
  readonly member: TarMember
  readonly segment: Uint8Array | undefined
  /** Which parts of it a start reads, undefined if nobody knows; and in which of them the next chunk is. */
  readonly parts: readonly ContentPart[] | undefined
  part: number
  left: number
  /** As much of the next chunk as is here. */
  chunk: Buffer
  filled: number
  fileOffset: number
  /** Of the whole content; undefined while one piece may be all of it. */
  whole: Hash | undefined
}
