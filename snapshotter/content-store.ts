import { chmod, type FileHandle, link, mkdir, open, opendir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { LayerBlob } from './blobs/layer-blob.ts'
import { syncDirectory } from './blobs/layer-file.ts'
import { type FieldOf, parseFilters } from './containerd/filters.ts'
import { checkLabels, type Labels, updatedLabels } from './containerd/labels.ts'
import { type BlobRecord, BlobRecords } from './content/blob-records.ts'
import { Ingest, type IngestStatus, ingestDir, ingestDirs, readIngest } from './content/ingest.ts'
import { RemoteBlobReader } from './content/remote-blob-reader.ts'
import { ContentError } from './errors.ts'
import { wallClockNs } from './kernel/libc.ts'
import type { Log } from './log.ts'
import { DIGEST_ALGORITHMS, type Digest, isDigest, parseDigest } from './oci/digest.ts'
import { orUndefinedIfGone } from './or-undefined-if-gone.ts'
import type { PublishedBlobs } from './published-blobs.ts'

export type { IngestStatus } from './content/ingest.ts'

/** What containerd may know of a blob. Times are nanoseconds since the epoch. */
export type BlobInfo = Omit<BlobRecord, 'published'>

export type ContentStoreConfig = {
  /** Where blobs and uploads are, as in containerd's own store, which may have left some there. */
  readonly root: string
  /** The database of what containerd's store does not keep. */
  readonly recordsPath: string
}

/** Length of a ref, in bytes of UTF-8. 4 KiB: containerd's own have a namespace, an upload number and a digest. */
const REF_BYTES_MAX = 4_096

/** Uploads that are not yet committed. 10,000: containerd deletes those that it has given up. */
const INGESTS_MAX = 10_000

/** Blobs in one page of a list: what containerd's own server sends in one message. */
const PAGE_BLOBS = 100

/** Bytes of one piece that is read from the disk: what containerd's own server sends in one message. */
const PIECE_BYTES = 1024 * 1024

/**
 * Blobs by digest, for containerd: those that it writes, in the folders and files of its own store, so that either takes over from
 * the other, and those of lazy layers, which are read from where they are published. Those are kept note of as soon as containerd has
 * asked for one, until it deletes it: it lists what is here, and deletes what none of its namespaces has.
 */
export class ContentStore implements AsyncDisposable {
  readonly #root: string
  readonly #records: BlobRecords
  readonly #published: PublishedBlobs
  readonly #remote = new RemoteBlobReader()
  readonly #onRead: (from: 'disk' | 'published', bytes: number) => void
  /** Uploads that somebody writes to, by ref; undefined while it is opened. */
  readonly #writing = new Map<string, Ingest | undefined>()

  private constructor(
    root: string,
    records: BlobRecords,
    { published, onRead }: Pick<Collaborators, 'published' | 'onRead'>,
  ) {
    this.#root = root
    this.#records = records
    this.#published = published
    this.#onRead = onRead ?? (() => {})
  }

  /** Opens what is there. Throws as `BlobRecords`. */
  static async open(
    config: ContentStoreConfig,
    collaborators: Collaborators,
  ): Promise<ContentStore> {
    const { root, recordsPath } = config
    for (const dir of ['blobs/sha256', 'ingest']) await mkdir(join(root, dir), { recursive: true })
    const records = new BlobRecords(recordsPath)
    const store = new ContentStore(root, records, collaborators)
    await store.#forgetUnwritten(collaborators.log)
    return store
  }

  /** Rejects with ContentError NOT_FOUND, and with ImageError INVALID_ARGUMENT if it is no digest. */
  async info(digest: string): Promise<BlobInfo> {
    const found = await this.#find(checked(digest))
    if (found === undefined) throw notFound(digest)
    // Listed from now on, so that it is deleted when nobody wants it any more.
    if (found.published !== undefined) await this.#note(found)
    return infoOf(found)
  }

  /** Replaces labels, as `updatedLabels`. Rejects as `info`. */
  async update(change: {
    readonly digest: string
    readonly labels: Labels
    readonly paths: readonly string[]
  }): Promise<BlobInfo> {
    const digest = checked(change.digest)
    const found = await this.#find(digest)
    if (found === undefined) throw notFound(digest)
    const { paths } = change
    const labels = updatedLabels(found.labels, {
      given: change.labels,
      paths,
      what: `blob ${digest}`,
    })
    const updated = { ...found, labels, updatedNs: wallClockNs() }
    this.#records.put(updated)
    await this.#records.wal.flushed()
    return infoOf(updated)
  }

  /**
   * Takes note of a blob of an image in a registry, to be read from there, if it is not known here. Whether it is known now. Rejects
   * with ImageError INVALID_ARGUMENT if it is no digest.
   */
  async know(
    blob: { readonly digest: string; readonly size: number },
    image: string,
  ): Promise<boolean> {
    const digest = checked(blob.digest)
    if ((await this.#find(digest)) !== undefined) return true
    const published = this.#published.inRegistry({ ...blob, digest }, image)
    if (published === undefined) return false
    await this.#note(newRecord({ digest, size: blob.size, published }))
    return true
  }

  /** Pages of the blobs that pass the filters, as they are now. Rejects with RequestError INVALID_ARGUMENT. */
  async *list(filters: readonly string[]): AsyncGenerator<BlobInfo[], void> {
    const passes = parseFilters(filters)
    let page: BlobInfo[] = []
    for await (const blob of this.#all()) {
      if (!passes(fieldsOf(blob))) continue
      page.push(infoOf(blob))
      if (page.length < PAGE_BLOBS) continue
      yield page
      page = []
    }
    if (page.length > 0) yield page
  }

  /** Forgets a blob, and deletes its bytes if they are here. Rejects as `info`. */
  async delete(digest: string): Promise<void> {
    const path = this.#blobPath(checked(digest))
    const wasHere = (await orUndefinedIfGone(rm(path).then(() => true))) === true
    // After its bytes: what is left of a blob without a record is still one.
    const wasNoted = this.#records.delete(digest as Digest)
    await this.#records.wal.flushed()
    if (!wasHere && !wasNoted) throw notFound(digest)
  }

  /**
   * Bytes of a blob from `offset` on, `size` of them or as many as there are; all if it is 0. Rejects as `info`, with ContentError
   * OUT_OF_RANGE, and with what a published blob cannot be had for.
   */
  async *read(
    request: { readonly digest: string; readonly offset: number; readonly size: number },
    signal: AbortSignal,
  ): AsyncGenerator<Uint8Array, void> {
    const digest = checked(request.digest)
    const file = await orUndefinedIfGone(open(this.#blobPath(digest), 'r'))
    if (file !== undefined) {
      await using _closed = file
      for await (const piece of storedPieces(file, { ...request, digest })) {
        this.#onRead('disk', piece.length)
        yield piece
      }
      return
    }
    const { published, size } = (await this.#find(digest)) ?? {}
    if (published === undefined || size === undefined) throw notFound(digest)
    const start = request.offset
    if (start > size) throw outOfRange({ digest, size, offset: start })
    const end = request.size > 0 ? Math.min(start + request.size, size) : size
    const openBlob = (): LayerBlob => this.#published.open(published)
    for await (const piece of this.#remote.read(digest, openBlob, { start, end }, signal)) {
      this.#onRead('published', piece.length)
      yield piece
    }
  }

  /** Rejects with ContentError NOT_FOUND. */
  async status(ref: string): Promise<IngestStatus> {
    const found = this.#writing.get(ref)?.status ?? (await readIngest(ingestDir(this.#root, ref)))
    if (found === undefined) throw noUpload(ref)
    return found
  }

  /** Rejects with RequestError INVALID_ARGUMENT. */
  async statuses(filters: readonly string[]): Promise<IngestStatus[]> {
    const passes = parseFilters(filters)
    const found: IngestStatus[] = []
    for (const dir of await ingestDirs(this.#root)) {
      const kept = await readIngest(dir)
      const status = kept && (this.#writing.get(kept.ref)?.status ?? kept)
      if (status && passes(([field]) => (field === 'ref' ? status.ref : undefined))) {
        found.push(status)
      }
    }
    return found
  }

  /** Deletes an upload that is not committed. Rejects with ContentError NOT_FOUND. */
  async abort(ref: string): Promise<void> {
    const dir = ingestDir(this.#root, ref)
    const isKnown = (await readIngest(dir)) !== undefined
    this.#writing.get(ref)?.abort()
    await rm(dir, { recursive: true, force: true })
    if (!isKnown) throw noUpload(ref)
  }

  /**
   * Begins or goes on with an upload, for this caller alone until it is disposed of. Rejects with ContentError: ALREADY_EXISTS (the
   * expected blob), UNAVAILABLE (somebody else writes to it), INVALID_ARGUMENT (no ref), RESOURCE_EXHAUSTED (too many uploads),
   * and as `Ingest.open`.
   */
  async write(options: {
    readonly ref: string
    readonly total: number
    readonly expected: string
  }): Promise<BlobWriter> {
    const { ref, total } = options
    const bytes = Buffer.byteLength(ref)
    if (bytes === 0 || bytes > REF_BYTES_MAX) {
      throw new ContentError(
        'INVALID_ARGUMENT',
        `an upload has a ref of 1 to ${REF_BYTES_MAX} bytes, not ${bytes}`,
      )
    }
    const expected = options.expected === '' ? undefined : checked(options.expected)
    if (this.#writing.has(ref)) {
      throw new ContentError('UNAVAILABLE', `somebody else writes to upload ${ref}: try again`, {
        ref,
      })
    }
    this.#writing.set(ref, undefined)
    try {
      const found = expected && (await this.#find(expected))
      if (found !== undefined) {
        if (found.published !== undefined) await this.#note(found)
        throw alreadyExists(found.digest)
      }
      const dir = ingestDir(this.#root, ref)
      if ((await ingestDirs(this.#root)).length >= INGESTS_MAX) {
        const isKnown = (await readIngest(dir)) !== undefined
        if (!isKnown) {
          throw new ContentError(
            'RESOURCE_EXHAUSTED',
            `${INGESTS_MAX} uploads are not committed ('ctr content active' lists them): containerd's garbage collection deletes old ones`,
          )
        }
      }
      const ingest = await Ingest.open(dir, { ref, total, expected })
      this.#writing.set(ref, ingest)
      return new BlobWriter(ingest, {
        commit: (said) => this.#commit(ingest, said),
        closed: () => this.#writing.delete(ref),
      })
    } catch (error) {
      this.#writing.delete(ref)
      throw error
    }
  }

  /** Rejects as `WriteAheadLog.failed`. */
  get failed(): Promise<never> {
    return this.#records.wal.failed
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#remote[Symbol.dispose]()
    await this.#records[Symbol.asyncDispose]()
  }

  async #commit(ingest: Ingest, said: CommittedBlob): Promise<Digest> {
    const labels = checkLabels(said.labels)
    const expected = said.expected === '' ? undefined : checked(said.expected)
    const { digest, dataPath } = await ingest.finish({ size: said.size, expected })
    const path = this.#blobPath(digest)
    if (await isFile(path)) {
      await this.#drop(ingest)
      throw alreadyExists(digest)
    }
    // Before the blob is there: a record without one is forgotten at the next start.
    this.#records.put(newRecord({ digest, size: ingest.status.offset, labels }))
    await this.#records.wal.flushed()
    await chmod(dataPath, 0o444)
    const folder = join(path, '..')
    await mkdir(folder, { recursive: true })
    try {
      await link(dataPath, path)
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error
      await this.#drop(ingest)
      throw alreadyExists(digest)
    }
    await syncDirectory(folder)
    await this.#drop(ingest)
    return digest
  }

  async #drop(ingest: Ingest): Promise<void> {
    ingest.abort()
    await rm(ingest.dir, { recursive: true, force: true })
  }

  /** The blob, with where it is; asks nobody but this node. */
  async #find(digest: Digest): Promise<BlobRecord | undefined> {
    const record = this.#records.get(digest)
    const stored = await this.#onDisk(digest, record)
    if (stored !== undefined) return stored
    if (record?.published !== undefined) return record
    const found = await this.#published.find(digest)
    return found && newRecord({ digest, size: found.size, published: found.bytes })
  }

  async #onDisk(digest: Digest, record: BlobRecord | undefined): Promise<BlobRecord | undefined> {
    const file = await orUndefinedIfGone(stat(this.#blobPath(digest), { bigint: true }))
    if (file === undefined) return undefined
    const { size, mtimeNs } = file
    const { createdNs = mtimeNs, updatedNs = mtimeNs, labels = new Map() } = record ?? {}
    return { digest, size: Number(size), createdNs, updatedNs, labels, published: undefined }
  }

  async #note(found: BlobRecord): Promise<void> {
    if (this.#records.get(found.digest) === undefined) this.#records.put(found)
    await this.#records.wal.flushed()
  }

  async *#all(): AsyncGenerator<BlobRecord, void> {
    for (const algorithm of Object.keys(DIGEST_ALGORITHMS)) {
      const dir = join(this.#root, 'blobs', algorithm)
      if ((await orUndefinedIfGone(stat(dir))) === undefined) continue
      for await (const { name } of await opendir(dir)) {
        const digest = `${algorithm}:${name}`
        if (!isDigest(digest)) continue
        const stored = await this.#onDisk(digest, this.#records.get(digest))
        if (stored !== undefined) yield stored
      }
    }
    for (const record of this.#records.all()) {
      if (record.published === undefined) continue
      if (!(await isFile(this.#blobPath(record.digest)))) yield record
    }
  }

  /** Records of blobs that were about to be there when a process was killed. */
  async #forgetUnwritten(log: Collaborators['log']): Promise<void> {
    let forgotten = 0
    for (const { digest, published } of this.#records.all()) {
      if (published !== undefined || (await isFile(this.#blobPath(digest)))) continue
      this.#records.delete(digest)
      forgotten += 1
    }
    if (forgotten > 0) log.info({ blobs: forgotten }, 'forgot blobs that were never written whole')
  }

  #blobPath(digest: Digest): string {
    const { algorithm, hex } = parseDigest(digest)
    return join(this.#root, 'blobs', algorithm, hex)
  }
}

type Collaborators = {
  readonly published: PublishedBlobs
  readonly log: Pick<Log, 'info'>
  /** Told of every piece that containerd is given. */
  readonly onRead?: (from: 'disk' | 'published', bytes: number) => void
}

/** Writes one upload. Dispose of it to let others go on; what was written stays. */
export class BlobWriter implements AsyncDisposable {
  readonly #ingest: Ingest
  readonly #store: WriterStore

  constructor(ingest: Ingest, store: WriterStore) {
    this.#ingest = ingest
    this.#store = store
  }

  get status(): IngestStatus {
    return this.#ingest.status
  }

  get digest(): Digest {
    return this.#ingest.digest
  }

  async write(bytes: Uint8Array): Promise<void> {
    await this.#ingest.write(bytes)
  }

  async restart(): Promise<void> {
    await this.#ingest.restart()
  }

  /**
   * Makes the upload a blob, whole and durable when it resolves. Rejects with ContentError ALREADY_EXISTS, after which the upload is
   * gone, and as `Ingest.finish`.
   */
  async commit(said: CommittedBlob): Promise<Digest> {
    return this.#store.commit(said)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ingest[Symbol.asyncDispose]()
    this.#store.closed()
  }
}

type WriterStore = {
  readonly commit: (said: CommittedBlob) => Promise<Digest>
  readonly closed: () => void
}

type CommittedBlob = {
  /** 0 if it was not said. */
  readonly size: number
  /** Empty if it was not said. */
  readonly expected: string
  readonly labels: Labels
}

/** The fields that containerd's filters know of a blob. */
function fieldsOf({ digest, labels }: BlobRecord): FieldOf {
  return ([field, ...rest]) => {
    if (field === 'digest') return digest
    if (field === 'labels') return labels.get(rest.join('.'))
    return undefined
  }
}

/** As `ContentStore.read`. containerd reads 32 KiB at a time: for those nothing is asked of the disk but the bytes. */
async function* storedPieces(
  file: FileHandle,
  request: { readonly digest: Digest; readonly offset: number; readonly size: number },
): AsyncGenerator<Uint8Array, void> {
  const { digest, offset, size } = request
  // In parts a blob ends where its file does.
  const end = size > 0 ? offset + size : (await file.stat()).size
  let position = offset
  while (position < end) {
    const bytes = Buffer.allocUnsafe(Math.min(PIECE_BYTES, end - position))
    const { bytesRead } = await file.read(bytes, 0, bytes.length, position)
    if (bytesRead === 0) break
    position += bytesRead
    yield bytes.subarray(0, bytesRead)
  }
  if (size === 0 && position < end) {
    const facts = { digest }
    const message = `blob ${digest} ended at byte ${position} on the disk`
    throw new ContentError('DATA_LOSS', message, facts)
  }
  if (position > offset) return
  const { size: length } = await file.stat()
  if (offset > length) throw outOfRange({ digest, size: length, offset })
}

function infoOf({ published: _published, ...info }: BlobRecord): BlobInfo {
  return info
}

function checked(digest: string): Digest {
  parseDigest(digest)
  return digest as Digest
}

/** Of a blob that is first heard of now. */
function newRecord({
  digest,
  size,
  labels = new Map(),
  published,
}: {
  readonly digest: Digest
  readonly size: number
  readonly labels?: Labels
  readonly published?: Uint8Array
}): BlobRecord {
  const now = wallClockNs()
  return { digest, size, createdNs: now, updatedNs: now, labels, published }
}

async function isFile(path: string): Promise<boolean> {
  return (await orUndefinedIfGone(stat(path))) !== undefined
}

function outOfRange(read: { digest: Digest; size: number; offset: number }): ContentError {
  const { digest, size, offset } = read
  const message = `blob ${digest} has ${size} bytes, byte ${offset} was asked for`
  return new ContentError('OUT_OF_RANGE', message, { digest })
}

function notFound(digest: string): ContentError {
  return new ContentError('NOT_FOUND', `blob ${digest} is not here`, { digest })
}

function noUpload(ref: string): ContentError {
  return new ContentError('NOT_FOUND', `there is no upload ${ref}`, { ref })
}

function alreadyExists(digest: Digest): ContentError {
  return new ContentError('ALREADY_EXISTS', `blob ${digest} is here already`, { digest })
}
