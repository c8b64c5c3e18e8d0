import { Readable } from 'node:stream'
import type { FastifyPluginAsync, FastifyReply, FastifyRequest } from 'fastify'
import type { CID } from 'multiformats/cid'
import type { BlockMemory } from '../../snapshotter/block-source.ts'
import { CodedError } from '../../snapshotter/errors.ts'
import type { Log } from '../../snapshotter/log.ts'
import { parseCid } from '../../snapshotter/oci/parse-cid.ts'
import { inlineBlock } from '../../snapshotter/oci/verify-block.ts'
import { readDagLinks } from './dag-links.ts'
import type { DagBlock } from './walk-dag.ts'
import { walkPath } from './walk-path.ts'
import { writeCar } from './write-car.ts'

/** Where a gateway takes its blocks from, into `memory` if that is given; undefined is "not here". */
export type GatewayBlocks = {
  get(cid: CID, memory?: BlockMemory): Promise<Uint8Array | undefined>
}

/** Answers being made at once. 64 blocks of 2 MiB are 128 MiB at worst, of 256 KiB 16 MiB; one agent asks for 8. */
const ANSWERS_MAX = 64

/** How long a block may be kept by caches, in s: as long as RFC 9111 makes sense of, since a CID's bytes never change. */
const CACHE_S = 31_536_000

type GatewayQuery = {
  format?: string
  'dag-scope'?: string
  'entity-bytes'?: string
}
type CarScope = {
  readonly scope: 'block' | 'entity' | 'all'
  /** Bytes of a file, `end` not included; Infinity is its end. */
  readonly bytes: { readonly start: number; readonly end: number }
}

/**
 * The trustless gateway protocol (specs.ipfs.tech, trustless-gateway) from local blocks: `/ipfs/<cid>` as a raw block, `/ipfs/<cid>` and paths
 * below it as a CAR with dag-scope and entity-bytes. Nothing is fetched from elsewhere.
 */
export function gatewayService({
  blocks,
  memory,
  log,
}: {
  blocks: GatewayBlocks
  /** What raw blocks are sent from. */
  memory?: BlockMemory | undefined
  log: Log
}): FastifyPluginAsync {
  return async (app) => {
    let answers = 0
    app.addHook('onRequest', async (_request, reply) => {
      answers++
      reply.raw.once('close', () => answers--)
      if (answers > ANSWERS_MAX) {
        return refuse(
          reply.header('retry-after', 1),
          429,
          `${ANSWERS_MAX} answers are on their way`,
        )
      }
      return undefined
    })
    app.setErrorHandler((error, request, reply) => {
      const message = error instanceof Error ? error.message : String(error)
      log.warn({ url: request.url.slice(0, 300), reason: message }, 'a block could not be served')
      return refuse(reply, 500, message)
    })
    app.route<{ Params: { '*': string }; Querystring: GatewayQuery }>({
      method: ['GET', 'HEAD'],
      url: '/ipfs/*',
      handler: async (request, reply) => {
        const [text = '', ...names] = request.params['*'].replace(/\/$/, '').split('/')
        const cid = cidOf(text)
        if (cid === undefined) {
          return refuse(reply, 400, `${text.slice(0, 200)} is not a CID of content`)
        }
        switch (formatOf(request)) {
          case 'raw':
            if (names.length > 0) {
              const sentence =
                'what a path leads to can be verified as a CAR only: ask with ?format=car'
              return refuse(reply, 400, sentence)
            }
            return sendRaw(cid, { blocks, memory }, request, reply)
          case 'car':
            return sendCar({ root: cid, names }, blocks, request.query, request, reply)
          default:
            return refuse(
              reply,
              406,
              'this gateway is trustless: ask with ?format=raw or ?format=car',
            )
        }
      },
    })
  }
}

async function sendRaw(
  cid: CID,
  { blocks, memory }: { blocks: GatewayBlocks; memory: BlockMemory | undefined },
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  const etag = `"${cid.toString()}.raw"`
  if (request.headers['if-none-match']?.includes(etag) === true) return reply.code(304).send()
  const block = inlineBlock(cid) ?? (await blocks.get(cid, memory))
  if (block === undefined) return notHere(reply, cid)
  // The kernel has all of it by then, or nobody wants it.
  if (memory !== undefined) whenClosed(reply, () => memory.giveBack(block))
  return immutable(reply, cid, 'raw', etag)
    .type('application/vnd.ipld.raw')
    .header('content-length', block.length)
    .send(block)
}

function whenClosed({ raw }: FastifyReply, then: () => void): void {
  if (raw.closed) then()
  else raw.once('close', then)
}

async function sendCar(
  { root, names }: { readonly root: CID; readonly names: readonly string[] },
  blocks: GatewayBlocks,
  query: GatewayQuery,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  const walked =
    names.length === 0
      ? { end: root, way: [] }
      : await walkPath(root, names, (cid) => blocks.get(cid))
  if (walked === undefined) {
    const path = [root.toString(), ...names].join('/').slice(0, 300)
    return refuse(reply, 404, `/ipfs/${path} is not on this node, and it asks no others`)
  }
  const { end, way } = walked
  const last = way.at(-1)
  const first = last?.cid.equals(end) === true ? last.bytes : await blockOf(end, blocks)
  if (first === undefined) return notHere(reply, end)
  const scope = carScopeOf(query, end, first)
  if (scope === undefined) {
    const expected = 'dag-scope must be block, entity or all, and entity-bytes from:to in bytes'
    return refuse(reply, 400, expected)
  }
  immutable(reply, root, 'car')
    .type('application/vnd.ipld.car; version=1; order=dfs; dups=n')
    .header('x-ipfs-path', ['/ipfs', root.toString(), ...names.map(encodeURIComponent)].join('/'))
  if (request.method === 'HEAD') return reply.send(Buffer.alloc(0))
  // Rejects in the middle if a block is missing, which breaks the answer off.
  const car = writeCar(root, dagBlocks({ cid: end, bytes: first }, { blocks, way }, scope))
  return reply.send(Readable.from(car, { objectMode: false }))
}

/** Blocks on the way to a DAG, then its own in depth-first order, each once. */
async function* dagBlocks(
  top: DagBlock,
  { blocks, way }: { readonly blocks: GatewayBlocks; readonly way: readonly DagBlock[] },
  { scope, bytes }: CarScope,
): AsyncGenerator<DagBlock, void, void> {
  const sent = new Set(way.map(({ cid }) => cid.toString()))
  yield* way
  const stack = [{ cid: top.cid, start: 0 }]
  for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
    const { cid, start } = next
    const block = cid === top.cid ? top.bytes : await blockOf(cid, blocks)
    if (block === undefined)
      throw new CodedError('NOT_FOUND', `block ${cid.toString()} is not here`)
    if (!sent.has(cid.toString())) yield { cid, bytes: block }
    sent.add(cid.toString())
    if (scope === 'block') return
    const { dataBytes, links } = readDagLinks(cid, block)
    const children: typeof stack = []
    let end = start + dataBytes
    for (const { cid, fileBytes, isInner } of links) {
      const inRange = fileBytes === 0 || (end < bytes.end && end + fileBytes > bytes.start)
      if ((isInner || scope === 'all') && inRange) children.push({ cid, start: end })
      end += fileBytes
    }
    stack.push(...children.toReversed())
  }
}

async function blockOf(cid: CID, blocks: GatewayBlocks): Promise<Uint8Array | undefined> {
  return inlineBlock(cid) ?? (await blocks.get(cid))
}

/** Undefined if the query cannot be read. Offsets below zero count from the end of the file (IPIP-402). */
function carScopeOf(query: GatewayQuery, root: CID, first: Uint8Array): CarScope | undefined {
  const scope = query['dag-scope'] ?? 'all'
  if (scope !== 'block' && scope !== 'entity' && scope !== 'all') return undefined
  const range = query['entity-bytes']
  if (range === undefined) return { scope, bytes: { start: 0, end: Number.POSITIVE_INFINITY } }
  const [, from, to] = /^(-?\d{1,15}):(\*|-?\d{1,15})$/.exec(range) ?? []
  if (from === undefined || to === undefined) return undefined
  const { dataBytes, links } = readDagLinks(root, first)
  const size = links.reduce((sum, { fileBytes }) => sum + fileBytes, dataBytes)
  const offset = (text: string): number => (Number(text) < 0 ? size + Number(text) : Number(text))
  return {
    scope: 'entity',
    bytes: {
      start: Math.max(offset(from), 0),
      end: to === '*' ? Number.POSITIVE_INFINITY : offset(to) + 1,
    },
  }
}

function formatOf({ query, headers }: FastifyRequest): string | undefined {
  const { format } = query as GatewayQuery
  if (format !== undefined) return format
  return /application\/vnd\.ipld\.(raw|car)/.exec(headers.accept ?? '')?.[1]
}

function cidOf(text: string): CID | undefined {
  try {
    return parseCid(text)
  } catch {
    return undefined
  }
}

function immutable(reply: FastifyReply, cid: CID, format: string, etag?: string): FastifyReply {
  if (etag !== undefined) reply.header('etag', etag)
  return reply
    .header('cache-control', `public, max-age=${CACHE_S}, immutable`)
    .header('content-disposition', `attachment; filename="${cid.toString()}.${format}"`)
    .header('x-content-type-options', 'nosniff')
    .header('x-ipfs-path', `/ipfs/${cid.toString()}`)
    .header('x-ipfs-roots', cid.toString())
}

function notHere(reply: FastifyReply, cid: CID): FastifyReply {
  return refuse(reply, 404, `block ${cid.toString()} is not on this node, and it asks no others`)
}

function refuse(reply: FastifyReply, status: number, sentence: string): FastifyReply {
  return reply.code(status).type('text/plain; charset=utf-8').send(`${sentence}\n`)
}
