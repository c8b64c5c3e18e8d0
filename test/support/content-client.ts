import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { status } from '@grpc/grpc-js'
import { pino } from 'pino'
import { GrpcServer } from '../../agent/grpc-server.ts'
import { connect } from '../../proto/client.ts'
import type { Calls } from '../../proto/contract.ts'
import { contentContract } from '../../proto/load.ts'
import type {
  ContentDefinition,
  ContentHandlers,
} from '../../proto/types/containerd/services/content/v1/Content.ts'
import type { Info__Output } from '../../proto/types/containerd/services/content/v1/Info.ts'
import type { Status__Output } from '../../proto/types/containerd/services/content/v1/Status.ts'
import type { WriteContentRequest } from '../../proto/types/containerd/services/content/v1/WriteContentRequest.ts'
import type { WriteContentResponse__Output } from '../../proto/types/containerd/services/content/v1/WriteContentResponse.ts'
import { contentService } from '../../snapshotter/content-service.ts'
import { ContentStore } from '../../snapshotter/content-store.ts'
import type { PublishedBlobs } from '../../snapshotter/published-blobs.ts'

type WireCalls = Calls<ContentDefinition, ContentHandlers>
type Labels = Readonly<Record<string, string>>

/** Nothing is published anywhere. */
export const NOTHING_PUBLISHED: PublishedBlobs = {
  find: () => Promise.resolve(undefined),
  inRegistry: () => undefined,
  open: () => {
    throw new Error('nothing is published')
  },
}

/** As containerd's proxy content store: the wire's calls, spelled as its Go interface spells them. */
export class ContentClient {
  readonly #calls: WireCalls
  readonly #call = { signal: new AbortController().signal }

  constructor(calls: WireCalls) {
    this.#calls = calls
  }

  async info(digest: string): Promise<Info__Output> {
    return some((await this.#calls.Info({ digest }, this.#call)).info)
  }

  async update(digest: string, labels: Labels, ...paths: string[]): Promise<Info__Output> {
    const { info } = await this.#calls.Update(
      { info: { digest, labels }, updateMask: { paths } },
      this.#call,
    )
    return some(info)
  }

  async walk(...filters: string[]): Promise<Info__Output[]> {
    const found: Info__Output[] = []
    for await (const { info } of this.#calls.List({ filters }, this.#call)) found.push(...info)
    return found
  }

  async delete(digest: string): Promise<void> {
    await this.#calls.Delete({ digest }, this.#call)
  }

  async read(
    digest: string,
    { offset = 0, size = 0 }: { offset?: number; size?: number } = {},
  ): Promise<Buffer> {
    const pieces: Buffer[] = []
    let bytes = 0
    const request = { digest, offset: String(offset), size: String(size) }
    for await (const piece of this.#calls.Read(request, this.#call)) {
      if (Number(piece.offset) !== bytes) throw new Error(`piece at ${piece.offset}, not ${bytes}`)
      pieces.push(piece.data)
      bytes += piece.data.length
    }
    return Buffer.concat(pieces)
  }

  async status(ref: string): Promise<Status__Output> {
    return some((await this.#calls.Status({ ref }, this.#call)).status)
  }

  async statuses(...filters: string[]): Promise<Status__Output[]> {
    return (await this.#calls.ListStatuses({ filters }, this.#call)).statuses
  }

  async abort(ref: string): Promise<void> {
    await this.#calls.Abort({ ref }, this.#call)
  }

  /** A writer, if nobody else has the ref. */
  async writer(upload: Upload): Promise<ContentWriter> {
    const writer = new ContentWriter(this.#calls, upload)
    await writer.stat()
    return writer
  }

  /** A writer, once nobody else has the ref, as containerd's OpenWriter. */
  async openWriter(upload: Upload): Promise<ContentWriter> {
    for (;;) {
      try {
        return await this.writer(upload)
      } catch (error) {
        const isTaken =
          error instanceof Error && 'code' in error && error.code === status.UNAVAILABLE
        if (!isTaken) throw error
        await setTimeout(5)
      }
    }
  }

  /** As containerd's WriteBlob, and so that its garbage collection, which may begin at any time, leaves it alone. */
  async writeBlob(ref: string, bytes: Uint8Array, expected = ''): Promise<void> {
    const writer = await this.openWriter({ ref, total: bytes.length, expected })
    await writer.write(bytes)
    const labels = { 'containerd.io/gc.root': 'a test wants it' }
    await writer.commit({ size: bytes.length, expected, labels })
  }
}

type Said = { readonly size?: number; readonly expected?: string; readonly labels?: Labels }

export type Upload = { readonly ref: string; readonly total?: number; readonly expected?: string }

/** As containerd's remote writer: one message, one answer. */
export class ContentWriter {
  readonly #upload: Upload
  readonly #waiting: WriteContentRequest[] = []
  #wake: () => void = () => {}
  #isClosed = false
  readonly #gone = new AbortController()
  readonly #answers: AsyncIterator<WriteContentResponse__Output>
  #offset = 0
  #digest = ''

  constructor(calls: WireCalls, upload: Upload) {
    this.#upload = upload
    const { signal } = this.#gone
    this.#answers = calls.Write(this.#requests(), { signal })[Symbol.asyncIterator]()
  }

  get offset(): number {
    return this.#offset
  }

  get digest(): string {
    return this.#digest
  }

  async stat(): Promise<WriteContentResponse__Output> {
    return this.send({ action: 'STAT' })
  }

  async write(data: Uint8Array): Promise<void> {
    await this.send({ action: 'WRITE', offset: String(this.#offset), data: Buffer.from(data) })
  }

  /** The next write is the first one again. */
  truncate(): void {
    this.#offset = 0
  }

  async commit({ size = 0, expected = '', labels = {} }: Said = {}): Promise<void> {
    await this.send({
      action: 'COMMIT',
      offset: String(this.#offset),
      total: String(size),
      expected,
      labels,
    })
    await this.close()
  }

  /** Ends the stream, and waits until the server has, too. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.#wake()
    await this.#answers.next().then(undefined, () => undefined)
  }

  /** Goes away in the middle of the stream. */
  abandon(): void {
    this.#gone.abort()
  }

  async send(request: WriteContentRequest): Promise<WriteContentResponse__Output> {
    const { ref, total = 0, expected = '' } = this.#upload
    this.#waiting.push({ ref, total: String(total), expected, ...request })
    this.#wake()
    const answer = await this.#answers.next()
    if (answer.done === true) throw new Error('the server ended the stream')
    this.#offset = Number(answer.value.offset)
    this.#digest = answer.value.digest
    return answer.value
  }

  async *#requests(): AsyncGenerator<WriteContentRequest> {
    for (;;) {
      const next = this.#waiting.shift()
      if (next !== undefined) yield next
      else if (this.#isClosed) return
      else await new Promise<void>((resolve) => (this.#wake = resolve))
    }
  }
}

export type ServedContent = AsyncDisposable & {
  readonly client: ContentClient
  readonly store: ContentStore
  readonly socketPath: string
}

/** Opens the content store in `root`, serves it on a socket there and connects to it. */
export async function serveContent(
  root: string,
  published: PublishedBlobs = NOTHING_PUBLISHED,
  contentRoot: string = join(root, 'content'),
): Promise<ServedContent> {
  await using opened = new AsyncDisposableStack()
  const log = pino({ level: 'silent' })
  const config = { root: contentRoot, recordsPath: join(root, 'content.db') }
  const store = opened.use(await ContentStore.open(config, { published, log }))
  const socketPath = join(root, 'content.sock')
  const { signal } = new AbortController()
  opened.use(await GrpcServer.listen({ socketPath }, [contentService(store)], { log, signal }))
  const { calls } = opened.use(connect(contentContract(), socketPath))
  const kept = opened.move()
  return {
    client: new ContentClient(calls),
    store,
    socketPath,
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

function some<T>(value: T | null): T {
  if (value === null) throw new Error('the answer is empty')
  return value
}
