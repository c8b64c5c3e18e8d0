import { createHash, type Hash, hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import {
  type FileHandle,
  mkdir,
  open,
  readdir,
  readFile,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises'
import { join } from 'node:path'
import { writeWhole } from '../blobs/layer-file.ts'
import { ContentError } from '../errors.ts'
import { wallClockNs } from '../kernel/libc.ts'
import { type Digest, type DigestAlgorithm, parseDigest } from '../oci/digest.ts'
import { orUndefinedIfGone } from '../or-undefined-if-gone.ts'
import { formatTimestamp, parseTimestamp } from './timestamp.ts'

/** A blob on its way in. Times are nanoseconds since the epoch. */
export type IngestStatus = {
  readonly ref: string
  /** Bytes that are here. */
  readonly offset: number
  /** Bytes that it will have; 0 if nobody has said. */
  readonly total: number
  /** Empty if nobody has said, or after a restart. */
  readonly expected: string
  readonly startedNs: bigint
  readonly updatedNs: bigint
}

export type IngestOptions = {
  readonly ref: string
  readonly total: number
  readonly expected: Digest | undefined
}

/**
 * An upload that goes on where it ended, whichever process began it: a folder as containerd's own store has it (its package
 * plugins/content/local), with the files `ref`, `data`, `startedat`, `updatedat`, and `total` if that is known. One writer at a
 * time: the store sees to it.
 */
export class Ingest implements AsyncDisposable {
  readonly dir: string
  readonly #options: IngestOptions
  readonly #data: FileHandle
  readonly #algorithm: DigestAlgorithm
  readonly #total: number
  readonly #startedNs: bigint
  #hash: Hash
  #offset: number
  #updatedNs: bigint
  #isAborted = false

  private constructor(
    dir: string,
    options: IngestOptions,
    at: {
      data: FileHandle
      hash: Hash
      offset: number
      total: number
      startedNs: bigint
      updatedNs: bigint
    },
  ) {
    this.dir = dir
    this.#options = options
    this.#data = at.data
    this.#algorithm = algorithmOf(options.expected)
    this.#hash = at.hash
    this.#offset = at.offset
    this.#total = at.total
    this.#startedNs = at.startedNs
    this.#updatedNs = at.updatedNs
  }

  /**
   * Begins an upload, or goes on with it. Rejects with ContentError FAILED_PRECONDITION if it was begun for a blob of another
   * size.
   */
  static async open(dir: string, options: IngestOptions): Promise<Ingest> {
    const known = await readIngest(dir)
    if (known === undefined) return Ingest.#begin(dir, options)
    if (options.total > 0 && known.total > 0 && options.total !== known.total) {
      throw new ContentError(
        'FAILED_PRECONDITION',
        `upload ${options.ref} was begun for ${known.total} bytes, not ${options.total}: abort it first`,
        { ref: options.ref },
      )
    }
    const hash = await hashOfFile(join(dir, 'data'), algorithmOf(options.expected))
    const data = await open(join(dir, 'data'), 'r+')
    return new Ingest(dir, options, {
      data,
      hash,
      offset: known.offset,
      total: known.total || options.total,
      startedNs: known.startedNs,
      updatedNs: known.updatedNs,
    })
  }

  static async #begin(dir: string, options: IngestOptions): Promise<Ingest> {
    // What is half a folder was never acknowledged.
    await rm(dir, { recursive: true, force: true })
    await mkdir(dir, { recursive: true })
    const now = wallClockNs()
    const data = await open(join(dir, 'data'), 'w+', 0o644)
    try {
      await writeFile(join(dir, 'startedat'), formatTimestamp(now))
      await writeFile(join(dir, 'updatedat'), formatTimestamp(now))
      if (options.total > 0) await writeFile(join(dir, 'total'), String(options.total))
      // Last: it makes the folder an upload.
      await writeFile(join(dir, 'ref'), options.ref)
    } catch (error) {
      await data.close()
      throw error
    }
    const hash = createHash(algorithmOf(options.expected))
    const { total } = options
    return new Ingest(dir, options, {
      data,
      hash,
      offset: 0,
      total,
      startedNs: now,
      updatedNs: now,
    })
  }

  get status(): IngestStatus {
    return {
      ref: this.#options.ref,
      offset: this.#offset,
      total: this.#total,
      expected: this.#options.expected ?? '',
      startedNs: this.#startedNs,
      updatedNs: this.#updatedNs,
    }
  }

  /** Of the bytes that are here. */
  get digest(): Digest {
    return `${this.#algorithm}:${this.#hash.copy().digest('hex')}`
  }

  /** Adds bytes. Rejects with ContentError ABORTED if the upload was aborted, and as the disk does. */
  async write(bytes: Uint8Array): Promise<void> {
    this.#assertWanted()
    await writeWhole(this.#data, bytes, this.#offset)
    this.#hash.update(bytes)
    this.#offset += bytes.length
    this.#updatedNs = wallClockNs()
  }

  /** Throws what is here away. */
  async restart(): Promise<void> {
    this.#assertWanted()
    await this.#data.truncate(0)
    this.#hash = createHash(this.#algorithm)
    this.#offset = 0
    this.#updatedNs = wallClockNs()
  }

  /**
   * Sees the bytes to the disk, and tells what they are. Rejects with ContentError FAILED_PRECONDITION if they are fewer, more or
   * others than said; they stay then.
   */
  async finish(said: {
    readonly size: number
    readonly expected: Digest | undefined
  }): Promise<{ readonly digest: Digest; readonly dataPath: string }> {
    this.#assertWanted()
    const { ref } = this.#options
    if (said.size > 0 && said.size !== this.#offset) {
      throw new ContentError(
        'FAILED_PRECONDITION',
        `upload ${ref} has ${this.#offset} bytes, ${said.size} were to be committed`,
        { ref },
      )
    }
    const dataPath = join(this.dir, 'data')
    const expected = said.expected ?? this.#options.expected
    const algorithm = algorithmOf(expected)
    const isOther = algorithm !== this.#algorithm
    const digest: Digest = isOther
      ? `${algorithm}:${(await hashOfFile(dataPath, algorithm)).digest('hex')}`
      : this.digest
    if (expected !== undefined && expected !== digest) {
      throw new ContentError(
        'FAILED_PRECONDITION',
        `upload ${ref} has the digest ${digest}, ${expected} was to be committed`,
        { ref, digest, expected },
      )
    }
    await this.#data.sync()
    return { digest, dataPath }
  }

  /** From now on nothing is written any more. */
  abort(): void {
    this.#isAborted = true
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#data.close()
    if (this.#isAborted) return
    // Gone if it was committed.
    await writeFile(join(this.dir, 'updatedat'), formatTimestamp(this.#updatedNs)).catch(
      () => undefined,
    )
  }

  #assertWanted(): void {
    if (!this.#isAborted) return
    const { ref } = this.#options
    throw new ContentError('ABORTED', `upload ${ref} was aborted meanwhile`, { ref })
  }
}

/** The folder of an upload: references may be longer than names of files. */
export function ingestDir(root: string, ref: string): string {
  return join(root, 'ingest', hash('sha256', ref, 'hex'))
}

/** What an upload has come to, as its folder says; undefined if it is none. */
export function readIngest(dir: string): Promise<IngestStatus | undefined> {
  return orUndefinedIfGone(readFiles(dir))
}

async function readFiles(dir: string): Promise<IngestStatus | undefined> {
  const ref = await readFile(join(dir, 'ref'), 'utf8')
  const { size, mtimeNs } = await stat(join(dir, 'data'), { bigint: true })
  const startedNs = parseTimestamp(await readFile(join(dir, 'startedat'), 'utf8'))
  const updatedNs = parseTimestamp(await readFile(join(dir, 'updatedat'), 'utf8'))
  if (startedNs === undefined) return undefined
  const total = await readFile(join(dir, 'total'), 'utf8').catch(() => '0')
  return {
    ref,
    offset: Number(size),
    total: /^\d{1,15}$/.test(total) ? Number(total) : 0,
    expected: '',
    startedNs,
    // A process that was killed has not written down when it wrote last.
    updatedNs: updatedNs !== undefined && updatedNs > mtimeNs ? updatedNs : mtimeNs,
  }
}

/** Folders of uploads, whole and half. */
export async function ingestDirs(root: string): Promise<readonly string[]> {
  return (await readdir(join(root, 'ingest'))).map((name) => join(root, 'ingest', name))
}

async function hashOfFile(path: string, algorithm: DigestAlgorithm): Promise<Hash> {
  const hash = createHash(algorithm)
  for await (const bytes of createReadStream(path)) hash.update(bytes as Buffer)
  return hash
}

function algorithmOf(expected: Digest | undefined): DigestAlgorithm {
  return expected === undefined ? 'sha256' : parseDigest(expected).algorithm
}
