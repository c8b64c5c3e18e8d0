import type { Methods, Service } from '../proto/contract.ts'
import { implement } from '../proto/contract.ts'
import { contentContract } from '../proto/load.ts'
import type { ContentHandlers } from '../proto/types/containerd/services/content/v1/Content.ts'
import type { Info } from '../proto/types/containerd/services/content/v1/Info.ts'
import type { Status } from '../proto/types/containerd/services/content/v1/Status.ts'
import type { WriteContentRequest__Output as WriteRequest } from '../proto/types/containerd/services/content/v1/WriteContentRequest.ts'
import type { WriteContentResponse } from '../proto/types/containerd/services/content/v1/WriteContentResponse.ts'
import type { Timestamp } from '../proto/types/google/protobuf/Timestamp.ts'
import type { BlobInfo, BlobWriter, ContentStore, IngestStatus } from './content-store.ts'
import { ContentError } from './errors.ts'

/** `containerd.services.content.v1.Content`: what containerd's proxy plugin of type "content" talks to. */
export function contentService(store: ContentStore): Service {
  const methods: Methods<ContentHandlers> = {
    async Info({ digest }) {
      return { info: wireInfo(await store.info(digest)) }
    },
    async Update({ info, updateMask }) {
      const { digest = '', labels = {} } = info ?? {}
      const paths = updateMask?.paths ?? []
      const given = new Map(Object.entries(labels))
      return { info: wireInfo(await store.update({ digest, labels: given, paths })) }
    },
    async *List({ filters }) {
      for await (const page of store.list(filters)) yield { info: page.map(wireInfo) }
    },
    async Delete({ digest }) {
      await store.delete(digest)
      return {}
    },
    async *Read(request, { signal }) {
      const [offset, size] = [wholeNumber(request.offset), wholeNumber(request.size)]
      // Counted from the first byte that is sent.
      let sent = 0
      for await (const data of store.read({ digest: request.digest, offset, size }, signal)) {
        yield { offset: String(sent), data }
        sent += data.length
      }
    },
    async Status({ ref }) {
      return { status: wireStatus(await store.status(ref)) }
    },
    async ListStatuses({ filters }) {
      return { statuses: (await store.statuses(filters)).map(wireStatus) }
    },
    async *Write(requests) {
      yield* written(store, requests)
    },
    async Abort({ ref }) {
      await store.abort(ref)
      return {}
    },
  }
  return implement(contentContract(), methods)
}

/** The answers to the messages of one upload: one each, until it is committed. */
async function* written(
  store: ContentStore,
  requests: AsyncIterable<WriteRequest>,
): AsyncGenerator<WriteContentResponse, void> {
  await using opened = new AsyncDisposableStack()
  let writer: BlobWriter | undefined
  let [total, expected] = [0, '']
  for await (const request of requests) {
    total = wholeNumber(request.total) || total
    expected = request.expected || expected
    writer ??= opened.use(await store.write({ ref: request.ref, total, expected }))
    if (request.action !== 'STAT') await take(writer, request)
    if (request.action !== 'COMMIT') {
      yield answerOf(request.action, writer.status, writer.digest)
      continue
    }
    const { status } = writer
    const labels = new Map(Object.entries(request.labels))
    const digest = await writer.commit({ size: total, expected, labels })
    // Whoever has this answer may begin an upload by the same ref.
    await opened.disposeAsync()
    yield answerOf(request.action, status, digest)
    return
  }
}

/** Bytes go to where the last ones ended. A message for the first byte begins anew. */
async function take(writer: BlobWriter, { offset, data, ref }: WriteRequest): Promise<void> {
  const at = wholeNumber(offset)
  const { offset: current } = writer.status
  if (at > 0 && at !== current) {
    throw new ContentError(
      'OUT_OF_RANGE',
      `upload ${ref} goes on at byte ${current}, not at ${at}`,
      { ref },
    )
  }
  if (at === 0 && current > 0) await writer.restart()
  if (data.length > 0) await writer.write(data)
}

function answerOf(
  action: WriteRequest['action'],
  status: IngestStatus,
  digest: string,
): WriteContentResponse {
  return {
    action,
    startedAt: wireTime(status.startedNs),
    updatedAt: wireTime(status.updatedNs),
    offset: String(status.offset),
    total: String(status.total),
    digest,
  }
}

function wireInfo(blob: BlobInfo): Info {
  return {
    digest: blob.digest,
    size: String(blob.size),
    createdAt: wireTime(blob.createdNs),
    updatedAt: wireTime(blob.updatedNs),
    labels: Object.fromEntries(blob.labels),
  }
}

function wireStatus(status: IngestStatus): Status {
  return {
    ref: status.ref,
    offset: String(status.offset),
    total: String(status.total),
    expected: status.expected,
    startedAt: wireTime(status.startedNs),
    updatedAt: wireTime(status.updatedNs),
  }
}

/** An int64, which travels as text. Throws ContentError INVALID_ARGUMENT for one that is negative or not exact here. */
function wholeNumber(text: string): number {
  const value = Number(text)
  if (Number.isSafeInteger(value) && value >= 0) return value
  throw new ContentError('INVALID_ARGUMENT', `${text} is no number of bytes`)
}

function wireTime(timeNs: bigint): Timestamp {
  return { seconds: String(timeNs / 1_000_000_000n), nanos: Number(timeNs % 1_000_000_000n) }
}
