import { hash } from 'node:crypto'
import { gunzipSync } from 'node:zlib'
import type { LayerMap } from '../../blobs/layer-map.ts'
import { layerMapKind } from '../../blobs/layer-map-kind.ts'
import type { ByteRange } from '../../byte-range.ts'
import { LayerError } from '../../errors.ts'
import { ByteReader } from '../byte-reader.ts'
import { ByteWriter } from '../byte-writer.ts'
import { TAR_BLOCK_BYTES } from '../entry-limits.ts'
import { decodeZstdInto } from '../zstd-frames.ts'

/**
 * Whole zstd frames, or gzip members, that follow one another in the blob: a chunk of a file, the headers between two files, or,
 * with `tailFrom`, a chunk and the headers behind it.
 */
export type ChunkPiece = {
  readonly blobBytes: number
  readonly layerBytes: number
  /** SHA-256 of the layer bytes, those before `tailFrom` if there is one; undefined where the table gives none. */
  readonly sha256: Uint8Array | undefined
  /**
   * Bytes of the chunk, behind which come as many more as nobody knows before. In the layer file they stand in blocks
   * of their own, after their number in 8 bytes, in the room that `layerBytes` leaves them.
   */
  readonly tailFrom?: number
}

/** What compresses the pieces of a map; numbers on disk. */
export const pieceFormat = { zstd: 0, gzip: 1 } as const
export type PieceFormat = keyof typeof pieceFormat

/** Bytes of the tar, and where in the layer file they lie. */
export type TarPart = { readonly layerStart: number; readonly bytes: Uint8Array }

/** Bytes before a tail that say how long it is. */
export const TAIL_LENGTH_BYTES = 8

/** Pieces of one layer. 4,000,000: two a file for 2,000,000 files; at some 100 bytes each 400 MB while they are read. */
export const PIECES_MAX = 4_000_000

/**
 * One piece, in bytes, in the blob as in the layer. 64 MiB: a thousand times the chunk that containers/storage aims at
 * (RollsumBits 16), and a layer of 100,000 directories in a row; decoded in some 60 ms.
 */
export const PIECE_BYTES_MAX: number = 64 * 1024 * 1024

/** Where a unit of several pieces ends, in bytes of the layer. 8 MiB: as `UNIT_LAYER_BYTES_MAX` of a layer of ours. */
const UNIT_LAYER_BYTES = 8 * 1024 * 1024

const SHA256_BYTES = 32
const subject = 'chunk layer map'

/**
 * The map of a layer whose frames another tool cut, file by file. A unit is all pieces that start in one IPFS leaf, since no
 * less can be fetched: a leaf of a hundred small files is asked for once, or twice where a piece crosses its end.
 */
export class ChunkLayerMap implements LayerMap {
  readonly layerSize: number
  readonly blobSize: number
  readonly starts: Float64Array
  /** As `starts`, in the blob; what follows the last is the table of contents. */
  readonly #blobStarts: Float64Array
  /** The first piece of each unit, and the number of pieces as last element. */
  readonly #firstPieces: Uint32Array
  readonly #pieces: readonly ChunkPiece[]
  readonly #format: PieceFormat

  private constructor(
    pieces: readonly ChunkPiece[],
    firstPieces: readonly number[],
    blobSize: number,
    format: PieceFormat,
  ) {
    this.#format = format
    this.#pieces = pieces
    this.#firstPieces = Uint32Array.from([...firstPieces, pieces.length])
    this.starts = new Float64Array(this.#firstPieces.length)
    this.#blobStarts = new Float64Array(this.#firstPieces.length)
    let [layerEnd, blobEnd] = [0, 0]
    for (let unit = 0; unit < firstPieces.length; unit++) {
      for (const { blobBytes, layerBytes, tailFrom } of this.#piecesOf(unit)) {
        const leastBytes = tailFrom === undefined ? 1 : tailStart(tailFrom)
        if (!isWithin(blobBytes) || !isWithin(layerBytes) || layerBytes < leastBytes) {
          throw refused(`it has a piece of ${blobBytes} bytes that decode to ${layerBytes}`)
        }
        layerEnd += layerBytes
        blobEnd += blobBytes
      }
      this.starts[unit + 1] = layerEnd
      this.#blobStarts[unit + 1] = blobEnd
    }
    if (blobEnd > blobSize) throw refused(`its pieces take ${blobEnd} bytes of ${blobSize}`)
    this.layerSize = layerEnd
    this.blobSize = blobSize
  }

  /**
   * The map of a blob whose frames are `pieces` from its first byte on, and whose leaves start at `leafStarts`, ascending.
   * Throws LayerError INVALID_ARGUMENT if a piece is empty or beyond `PIECE_BYTES_MAX`, or they do not fit in `blobSize`.
   */
  static of(
    pieces: readonly ChunkPiece[],
    blob: { readonly size: number; readonly leafStarts: Float64Array },
    format: PieceFormat = 'zstd',
  ): ChunkLayerMap {
    if (pieces.length > PIECES_MAX) {
      throw refused(`it has ${pieces.length} pieces, the limit is ${PIECES_MAX}`)
    }
    const firstPieces: number[] = []
    let [blobAt, unitBytes, leaf] = [0, 0, 0]
    for (const [index, { blobBytes, layerBytes }] of pieces.entries()) {
      const leafBefore = leaf
      while ((blob.leafStarts[leaf + 1] ?? Number.POSITIVE_INFINITY) <= blobAt) leaf++
      if (index === 0 || leaf !== leafBefore || unitBytes + layerBytes > UNIT_LAYER_BYTES) {
        firstPieces.push(index)
        unitBytes = 0
      }
      unitBytes += layerBytes
      blobAt += blobBytes
    }
    return new ChunkLayerMap(pieces, firstPieces, blob.size, format)
  }

  blobRange(unit: number): ByteRange {
    const start = this.#blobStarts[unit]
    const end = this.#blobStarts[unit + 1]
    if (start === undefined || end === undefined) {
      throw new RangeError(
        `the layer has ${this.starts.length - 1} units, there is no unit ${unit}`,
      )
    }
    return { start, end }
  }

  async decode(unit: number, blob: Uint8Array, into?: Uint8Array): Promise<Uint8Array> {
    const { start, end } = this.blobRange(unit)
    if (blob.length !== end - start) {
      const at = `unit ${unit} of the layer, bytes [${start}, ${end}) of its blob`
      throw new LayerError('DATA_LOSS', `${at}: got ${blob.length} bytes`, { unit })
    }
    const decoded =
      into ?? Buffer.allocUnsafe((this.starts[unit + 1] ?? 0) - (this.starts[unit] ?? 0))
    // All pieces in one go: where one ends in what they make together, its digest tells, or at last the diff ID.
    if (this.#format === 'zstd') await decodeZstdInto(decoded, blob, start)
    else this.#decodeMembers(unit, blob, decoded)
    let [blobAt, filled] = [start, 0]
    for (const { blobBytes, layerBytes, sha256, tailFrom = layerBytes } of this.#piecesOf(unit)) {
      const chunk = decoded.subarray(filled, filled + tailFrom)
      const digest = hash('sha256', chunk, 'buffer')
      if (sha256 !== undefined && !digest.equals(sha256)) {
        const at = `chunk at bytes [${blobAt}, ${blobAt + blobBytes}) of the blob`
        const digests = `${hex(digest)}, its table of contents says ${hex(sha256)}`
        throw new LayerError('DATA_LOSS', `${at} has sha256 ${digests}`, { unit })
      }
      filled += layerBytes
      blobAt += blobBytes
    }
    return decoded
  }

  #decodeMembers(unit: number, blob: Uint8Array, into: Uint8Array): void {
    const { start } = this.blobRange(unit)
    let [blobAt, filled] = [0, 0]
    for (const piece of this.#piecesOf(unit)) {
      const stored = blob.subarray(blobAt, blobAt + piece.blobBytes)
      into.set(decodeMembers(stored, piece, start + blobAt), filled)
      filled += piece.layerBytes
      blobAt += piece.blobBytes
    }
  }

  /** The parts of the tar that a unit's bytes of the layer file hold. Throws LayerError DATA_LOSS if they are damaged. */
  tarParts(unit: number, layer: Uint8Array): TarPart[] {
    const parts: TarPart[] = []
    const layerStart = this.starts[unit] ?? 0
    let at = 0
    for (const { layerBytes, tailFrom } of this.#piecesOf(unit)) {
      const piece = layer.subarray(at, at + layerBytes)
      parts.push({ layerStart: layerStart + at, bytes: piece.subarray(0, tailFrom ?? layerBytes) })
      if (tailFrom !== undefined) {
        const start = tailStart(tailFrom)
        const length = Number(
          Buffer.from(piece.buffer, piece.byteOffset, piece.length).readBigUInt64LE(
            start - TAIL_LENGTH_BYTES,
          ),
        )
        if (length > layerBytes - start) throw refused(`a tail of ${length} bytes has no room`)
        parts.push({
          layerStart: layerStart + at + start,
          bytes: piece.subarray(start, start + length),
        })
      }
      at += layerBytes
    }
    return parts
  }

  /** Whether the layer file is something else than the tar: then `tarParts` makes it. */
  get isRearranged(): boolean {
    return this.#format === 'gzip'
  }

  /**
   * Whether every byte that a container can see is checked against a digest. Tails are not: nothing maps them, and they only
   * take part in making the tar, which has its diff ID.
   */
  get isBound(): boolean {
    return this.#pieces.every(({ sha256, tailFrom }) => sha256 !== undefined || tailFrom === 0)
  }

  toBytes(): Uint8Array {
    const writer = new ByteWriter()
    writer.uint(layerMapKind.chunks)
    writer.uint(this.blobSize)
    writer.uint(pieceFormat[this.#format])
    writer.uint(this.starts.length - 1)
    for (let unit = 0; unit + 1 < this.starts.length; unit++) {
      const pieces = this.#piecesOf(unit)
      writer.uint(pieces.length)
      for (const { blobBytes, layerBytes, sha256, tailFrom } of pieces) {
        writer.uint(blobBytes)
        writer.uint(layerBytes)
        writer.uint(tailFrom === undefined ? 0 : tailFrom + 1)
        writer.bytes(sha256 ?? new Uint8Array())
      }
    }
    return writer.written()
  }

  /** The way back from `toBytes`. Throws LayerError DATA_LOSS if the bytes are no such map. */
  static fromBytes(bytes: Uint8Array): ChunkLayerMap {
    const reader = new ByteReader(bytes, subject)
    if (reader.uint() !== layerMapKind.chunks) throw reader.broken('it is a map of another kind')
    const blobSize = reader.uint()
    const format = reader.uint() === pieceFormat.gzip ? 'gzip' : 'zstd'
    const units = reader.count(PIECES_MAX, 5)
    const firstPieces: number[] = []
    const pieces: ChunkPiece[] = []
    for (let unit = 0; unit < units; unit++) {
      firstPieces.push(pieces.length)
      for (let left = reader.count(PIECES_MAX, 4); left > 0; left--) {
        const [blobBytes, layerBytes, tail] = [reader.uint(), reader.uint(), reader.uint()]
        // A copy: a view would keep the whole map in memory.
        const sha256 = Uint8Array.from(reader.bytes())
        if (sha256.length !== 0 && sha256.length !== SHA256_BYTES) {
          throw reader.broken('a digest in it is no SHA-256')
        }
        pieces.push({
          blobBytes,
          layerBytes,
          sha256: sha256.length === 0 ? undefined : sha256,
          ...(tail > 0 ? { tailFrom: tail - 1 } : {}),
        })
      }
    }
    reader.end()
    return new ChunkLayerMap(pieces, firstPieces, blobSize, format)
  }

  #piecesOf(unit: number): readonly ChunkPiece[] {
    return this.#pieces.slice(this.#firstPieces[unit], this.#firstPieces[unit + 1])
  }
}

/**
 * Where a tail starts in its piece. A block further than the chunk's last block can reach, wherever the piece starts: EROFS maps
 * whole blocks, and what follows a file's end in its last one must be zeros.
 */
export function tailStart(tailFrom: number): number {
  const blocks = Math.ceil(tailFrom / TAR_BLOCK_BYTES) + 1
  return blocks * TAR_BLOCK_BYTES + TAIL_LENGTH_BYTES
}

/** Decodes gzip members to what the layer file has of them. Throws LayerError DATA_LOSS if they make too much or too little. */
function decodeMembers(
  stored: Uint8Array,
  { layerBytes, tailFrom }: ChunkPiece,
  at: number,
): Buffer {
  const start = tailFrom === undefined ? layerBytes : tailStart(tailFrom)
  const bytesMax = tailFrom === undefined ? layerBytes : tailFrom + layerBytes - start
  const broken = (what: string, cause?: unknown): LayerError =>
    new LayerError(
      'DATA_LOSS',
      `gzip members at byte ${at} of the blob ${what}`,
      { offset: at },
      cause,
    )
  let made: Buffer
  try {
    // Zlib takes no limit of 0.
    made = gunzipSync(stored, { maxOutputLength: Math.max(bytesMax, 1) })
  } catch (cause) {
    throw broken(`do not decode to at most ${bytesMax} bytes`, cause)
  }
  if (tailFrom === undefined) {
    if (made.length === layerBytes) return made
    throw broken(`make ${made.length} bytes in place of ${layerBytes}`)
  }
  if (made.length < tailFrom) throw broken(`make ${made.length} bytes, fewer than ${tailFrom}`)
  const piece = Buffer.alloc(layerBytes)
  made.copy(piece, 0, 0, tailFrom)
  piece.writeBigUInt64LE(BigInt(made.length - tailFrom), start - TAIL_LENGTH_BYTES)
  made.copy(piece, start, tailFrom)
  return piece
}

function isWithin(bytes: number): boolean {
  return bytes > 0 && bytes <= PIECE_BYTES_MAX
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}

function refused(what: string): LayerError {
  return new LayerError('INVALID_ARGUMENT', `${subject}: ${what}`)
}
