import { readSync } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import { open } from 'node:fs/promises'
import { posix } from 'node:path'
import type { ByteRange } from '../../byte-range.ts'
import { ImageError } from '../../errors.ts'
import { printable } from '../../toc/entry-limits.ts'
import type { TocEntry } from '../../toc/layer-toc.ts'
import { walkTar } from '../../toc/walk-tar.ts'
import type { LayoutFiles } from './oci-layout.ts'

/** Links to follow from one member to another. 8: `docker save` wrote symlinks from a layer to its twin, one deep. */
const LINKS_MAX = 8

/** A tar on disk, read member by member. Only headers are read on opening. */
export class TarArchive implements LayoutFiles, AsyncDisposable {
  readonly name: string
  readonly #file: FileHandle
  readonly #members: ReadonlyMap<string, TocEntry>

  private constructor(name: string, file: FileHandle, members: ReadonlyMap<string, TocEntry>) {
    this.name = name
    this.#file = file
    this.#members = members
  }

  /** Opens an uncompressed tar. Rejects with LayerError as `walkTar`, or as the file system. */
  static async open(path: string, signal: AbortSignal): Promise<TarArchive> {
    const file = await open(path)
    try {
      const { size } = await file.stat()
      // Synchronous: a root filesystem has some 50,000 headers, each 3 µs this way and 50 µs by a thread.
      const read = (offset: number, length: number): Uint8Array => {
        const buffer = Buffer.alloc(length)
        return buffer.subarray(0, readSync(file.fd, buffer, 0, length, offset))
      }
      const { entries } = await walkTar(read, size, signal)
      return new TarArchive(path, file, new Map(entries.map((entry) => [entry.path, entry])))
    } catch (error) {
      await file.close()
      throw error
    }
  }

  has(path: string): boolean {
    return this.#members.has(path)
  }

  async readSmall(path: string, bytesMax: number): Promise<Uint8Array | undefined> {
    const member = this.#resolve(path)
    if (member === undefined) return undefined
    if (member.size > bytesMax) {
      const message = `${this.name}: ${printable(path)} has ${member.size} bytes, the limit is ${bytesMax}`
      throw new ImageError('RESOURCE_EXHAUSTED', message)
    }
    const { start, end } = contentOf(member)
    const { buffer, bytesRead } = await this.#file.read(
      Buffer.alloc(end - start),
      0,
      end - start,
      start,
    )
    return buffer.subarray(0, bytesRead)
  }

  stream(path: string, signal: AbortSignal): AsyncIterable<Uint8Array> | undefined {
    const member = this.#resolve(path)
    if (member === undefined) return undefined
    return this.#read(contentOf(member), signal)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close()
  }

  async *#read({ start, end }: ByteRange, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
    for (let at = start; at < end; ) {
      if (signal.aborted) throw new ImageError('CANCELLED', `reading ${this.name} was cancelled`)
      const length = Math.min(1 << 18, end - at)
      const { bytesRead, buffer } = await this.#file.read(Buffer.alloc(length), 0, length, at)
      if (bytesRead === 0) {
        throw new ImageError('DATA_LOSS', `${this.name} became shorter while it was read`)
      }
      at += bytesRead
      yield buffer.subarray(0, bytesRead)
    }
  }

  /** The regular file that `path` leads to, through links between members. */
  #resolve(path: string): TocEntry | undefined {
    let member = this.#members.get(path)
    for (let links = 0; links < LINKS_MAX && member !== undefined; links++) {
      if (member.kind === 'reg') return member
      if (member.linkTarget === undefined) return undefined
      // A hard link's target is a path from the root already; `..` above the root stays there.
      const from = member.kind === 'symlink' ? posix.dirname(member.path) : ''
      const isFromRoot = member.linkTarget.startsWith('/')
      const target = posix.join('/', isFromRoot ? '' : from, member.linkTarget)
      member = this.#members.get(target.slice(1))
    }
    return undefined
  }
}

function contentOf(member: TocEntry): ByteRange {
  const [extent, ...more] = member.extents ?? []
  if (extent === undefined) return { start: 0, end: 0 }
  if (more.length > 0 || extent.length !== member.size) {
    const message = `${printable(member.path)} is a sparse file, which image archives do not have`
    throw new ImageError('UNIMPLEMENTED', message)
  }
  return { start: extent.layerOffset, end: extent.layerOffset + extent.length }
}
