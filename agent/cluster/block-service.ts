import type { FastifyPluginAsync, FastifyReply, FastifyRequest } from 'fastify'
import type { CID } from 'multiformats/cid'
import type { Priority } from '../../snapshotter/block-source.ts'
import { BlockError } from '../../snapshotter/errors.ts'
import type { Log } from '../../snapshotter/log.ts'
import { parseCid } from '../../snapshotter/oci/parse-cid.ts'
import { inlineBlock } from '../../snapshotter/oci/verify-block.ts'
import { priorityOfHeader } from '../ipfs/http-priority.ts'
import type { KeptBlocks } from './kept-blocks.ts'
import type { UploadLimit } from './upload-limit.ts'

/** Time between two signs that an answer is being worked on, in ms: eight in what the one who waits allows (ipfs/block-race.ts). */
const WORKING_INTERVAL_MS = 250

/** How long sending a block may take, in ms. 30 s: the same that those who ask give it. */
const SEND_MS = 30_000

/** Of all answers at once, the share that each priority may come to, so that there is room for those who wait. */
const SHARE: Readonly<Record<Priority, number>> = { foreground: 1, prefetch: 0.75, background: 0.5 }

export type Refusal = 'answers' | 'upload'

type Collaborators = {
  readonly kept: KeptBlocks
  readonly upload: UploadLimit
  readonly log: Pick<Log, 'warn'>
  /** No answer is waited for once it has aborted. */
  readonly stop: AbortSignal
  readonly onServed?: (bytes: number) => void
  readonly onRefused?: (why: Refusal) => void
}

/**
 * A trustless gateway for the agents of the cluster (specs.ipfs.tech, trustless-gateway), of raw blocks: those kept here, and those that
 * the origin has. Who may ask is TLS' business. Others' requests for the same block wait for one fetch, and none leads to
 * another agent. While it works on an answer it says so (102).
 */
export function blockService(
  { answersMax }: { readonly answersMax: number },
  { kept, upload, log, stop, onServed, onRefused }: Collaborators,
): FastifyPluginAsync {
  let answers = 0
  const answer = async (
    cid: CID,
    priority: Priority,
    reply: FastifyReply,
  ): Promise<FastifyReply> => {
    const gone = new AbortController()
    reply.raw.once('close', () => gone.abort(new Error('nobody waits for it any more')))
    const whenClosed = (then: () => void): void => {
      if (gone.signal.aborted) then()
      else reply.raw.once('close', then)
    }
    const signal = AbortSignal.any([gone.signal, stop])
    const size = kept.sizeOf(cid)
    using working = sayWorking(reply, { now: size === undefined })
    try {
      // One buffer for all who wait; what is on the disk is read when it is its turn.
      const fetched = size === undefined ? await kept.shared(cid, { priority, signal }) : undefined
      const turn = await upload.turn(size ?? fetched?.length ?? 0, priority, signal)
      whenClosed(() => turn[Symbol.dispose]())
      const block = fetched ?? (await kept.shared(cid, { priority, signal }))
      working[Symbol.dispose]()
      const late = setTimeout(() => reply.raw.destroy(), SEND_MS)
      whenClosed(() => clearTimeout(late))
      onServed?.(block.length)
      return sendBlock(reply, block)
    } catch (error) {
      working[Symbol.dispose]()
      if (stop.aborted) return refuse(reply, 503, 'this node is stopping')
      // Nobody reads it.
      if (gone.signal.aborted) return reply.hijack()
      if (!(error instanceof BlockError)) throw error
      if (error.code === 'RESOURCE_EXHAUSTED') {
        onRefused?.('upload')
        return refuse(reply.header('retry-after', 1), 429, error.message)
      }
      return refuse(reply, 404, `it cannot be had: ${error.message}`)
    }
  }
  return async (app) => {
    app.setErrorHandler((error, request, reply) => {
      const message = error instanceof Error ? error.message : String(error)
      const url = request.url.slice(0, 300)
      log.warn({ url, reason: message }, 'a block could not be served to another node')
      return refuse(reply, 500, message)
    })
    // Not a parameter, of which 100 characters are taken: the CID of a long digest has more.
    app.get<{ Params: { '*': string } }>('/ipfs/*', async (request, reply) => {
      const cid = cidOf(request.params['*'])
      if (cid === undefined) return refuse(reply, 400, 'that is no CID of content')
      if (!asksForRaw(request)) return refuse(reply, 406, 'only raw blocks are served here')
      const inline = inlineBlock(cid)
      if (inline !== undefined) return sendBlock(reply, inline)
      const priority = priorityOfHeader(request.headers['priority'])
      if (answers >= answersMax * SHARE[priority]) {
        onRefused?.('answers')
        return refuse(reply.header('retry-after', 1), 429, `${answers} answers are on their way`)
      }
      answers++
      reply.raw.once('close', () => answers--)
      return answer(cid, priority, reply)
    })
    app.post<{ Params: { '*': string } }>('/v1/escalate/*', async (request, reply) => {
      const cid = cidOf(request.params['*'])
      if (cid === undefined) return refuse(reply, 400, 'that is no CID of content')
      kept.escalate(cid)
      return reply.code(204).send()
    })
  }
}

/** Says so, again and again until it is disposed of. */
function sayWorking({ raw }: FastifyReply, { now }: { now: boolean }): Disposable {
  const say = (): void => {
    if (!raw.headersSent && !raw.destroyed) raw.writeProcessing()
  }
  if (now) say()
  const timer = setInterval(say, WORKING_INTERVAL_MS)
  return { [Symbol.dispose]: () => clearInterval(timer) }
}

function sendBlock(reply: FastifyReply, block: Uint8Array): FastifyReply {
  return reply
    .type('application/vnd.ipld.raw')
    .header('content-length', block.length)
    .send(Buffer.from(block.buffer, block.byteOffset, block.byteLength))
}

function asksForRaw({ query, headers }: FastifyRequest): boolean {
  const { format } = query as { format?: unknown }
  if (format !== undefined) return format === 'raw'
  return headers.accept?.includes('application/vnd.ipld.raw') === true
}

function cidOf(text: string): CID | undefined {
  try {
    return parseCid(text)
  } catch {
    return undefined
  }
}

function refuse(reply: FastifyReply, status: number, sentence: string): FastifyReply {
  return reply.code(status).type('text/plain; charset=utf-8').send(`${sentence}\n`)
}
