import { printable } from '../toc/entry-limits.ts'
import { isZeros } from '../toc/tar-header.ts'
import type { TarMember } from '../toc/walk-tar.ts'
import type { ChunkedChunk, ChunkedTables } from '../toc/zstd-chunked.ts'
import {
  CHUNKED_TOC_BYTES_MAX,
  chunkedObstacle,
  chunkedTables,
  chunkedTocLines,
} from '../toc/zstd-chunked.ts'
import type { PassedMember } from './layer-pieces.ts'
import { TarSplitWriter } from './tar-split.ts'

/** Collects what zstd:chunked says of a layer while it is written, until something cannot be said in it. */
export class ChunkedRecords {
  readonly #tarSplit = new TarSplitWriter()
  readonly #paths = new Set<string>()
  readonly #chunks = new Map<TarMember, ChunkedChunk[]>()
  #passed: PassedMember[] = []
  #lines: string[] = []
  #lineBytes = 0
  #obstacle: string | undefined

  /** Why the layer has no zstd:chunked tables; undefined as long as it can have them. */
  get obstacle(): string | undefined {
    return this.#obstacle
  }

  /** A member has gone by; its chunks may still be on their way. */
  pass(passed: PassedMember): void {
    if (this.#obstacle !== undefined) return
    const { member, segment, sums } = passed
    const { path, size } = member.entry
    const obstacle = this.#paths.has(path) ? 'is in the layer twice' : chunkedObstacle(member)
    if (obstacle !== undefined || segment === undefined) {
      this.giveUp(`${printable(path)} ${obstacle ?? 'has headers of more than 4 MiB'}`)
      return
    }
    this.#paths.add(path)
    const name = Buffer.from(member.written.name, 'latin1').toString()
    this.#tarSplit.file(segment, name, size, sums?.crc64)
    this.#passed.push({ member, segment: undefined, ...(sums === undefined ? {} : { sums }) })
  }

  /** A frame of a member's content is in the blob. */
  chunk(member: TarMember, chunk: ChunkedChunk): void {
    if (this.#obstacle !== undefined) return
    const chunks = this.#chunks.get(member)
    if (chunks === undefined) this.#chunks.set(member, [chunk])
    else chunks.push(chunk)
    if (chunk.fileOffset + chunk.size === member.entry.size) this.#say(member)
  }

  /** The tables of the whole layer, for a blob that is `offset` bytes long; undefined if there is an obstacle. */
  finish(trailer: Uint8Array | undefined, offset: number): ChunkedTables | undefined {
    this.#say(undefined)
    if (trailer === undefined || !isZeros(trailer)) {
      this.giveUp('the tar goes on after its end')
    }
    if (this.#obstacle !== undefined || trailer === undefined) return undefined
    this.#tarSplit.trailer(trailer)
    return chunkedTables(this.#lines, this.#tarSplit.finish(), offset)
  }

  /** Turns members into lines, in tar order, up to and with `last`, whose chunks are now complete. */
  #say(last: TarMember | undefined): void {
    let said = 0
    for (const { member, sums } of this.#passed) {
      const chunks = this.#chunks.get(member)
      if (sums !== undefined && (chunks === undefined || isPartial(member, chunks))) break
      const content = sums === undefined ? undefined : { sha256: sums.sha256, chunks: chunks ?? [] }
      for (const line of chunkedTocLines(member, content)) {
        this.#lines.push(line)
        this.#lineBytes += line.length + 2
      }
      this.#chunks.delete(member)
      said++
      if (member === last) break
    }
    this.#passed.splice(0, said)
    if (this.#lineBytes > CHUNKED_TOC_BYTES_MAX) {
      this.giveUp(
        `its table of contents exceeds ${CHUNKED_TOC_BYTES_MAX} bytes, which no reader takes`,
      )
    }
  }

  /** There are no tables to be, for this reason; the first one counts. */
  giveUp(obstacle: string): void {
    this.#obstacle ??= obstacle
    this.#paths.clear()
    this.#chunks.clear()
    this.#passed = []
    this.#lines = []
  }
}

function isPartial(member: TarMember, chunks: readonly ChunkedChunk[]): boolean {
  const last = chunks.at(-1)
  return last === undefined || last.fileOffset + last.size < member.entry.size
}
