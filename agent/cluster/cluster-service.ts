import type { FastifyPluginAsync, FastifyReply, FastifyRequest } from 'fastify'
import { CodedError } from '../../snapshotter/errors.ts'
import { isDigest } from '../../snapshotter/oci/digest.ts'
import { parseCid } from '../../snapshotter/oci/parse-cid.ts'
import { ASKED_BY_HEADER, NODE_HEADER, WhoAsked } from './who-asked.ts'

type Collaborators = {
  /** The side index of the blob with this CIDv1. Rejects with CodedError NOT_FOUND. */
  readonly sideIndex: (blobCid: string) => Promise<Uint8Array>
  /** The prefetch list of the image with this chain ID. Rejects with CodedError NOT_FOUND. */
  readonly prefetchList: (layerChainId: string) => Promise<Uint8Array>
  readonly onAnswer: (what: 'index' | 'prefetch', found: boolean) => void
}

/**
 * What this node found out about layers, for the agents of its cluster: `GET /v1/indexes/<blob CID>` and
 * `GET /v1/prefetch/<chain ID>`, each answered with the bytes, or 404 and who asked for the same before. Who may ask is TLS' business.
 */
export function clusterService({
  sideIndex,
  prefetchList,
  onAnswer,
}: Collaborators): FastifyPluginAsync {
  const asked = new WhoAsked()
  const answer = async (
    { headers }: Pick<FastifyRequest, 'headers'>,
    reply: FastifyReply,
    {
      what,
      name,
      find,
    }: { what: 'index' | 'prefetch'; name: string; find: (name: string) => Promise<Uint8Array> },
  ): Promise<FastifyReply> => {
    try {
      const bytes = await find(name)
      onAnswer(what, true)
      return reply.type('application/octet-stream').send(Buffer.from(bytes))
    } catch (error) {
      if (!(error instanceof CodedError) || error.code !== 'NOT_FOUND') throw error
      onAnswer(what, false)
      const before = asked.note(`${what} ${name}`, headers[NODE_HEADER])
      if (before.length > 0) reply.header(ASKED_BY_HEADER, before.join(', '))
      return reply.code(404).type('text/plain').send(error.message)
    }
  }
  return async (app) => {
    app.get<{ Params: { cid: string } }>('/v1/indexes/:cid', async (request, reply) => {
      const cid = parseCid(request.params.cid)
      if (cid === undefined) return reply.code(400).type('text/plain').send('that is no CID')
      const name = cid.toV1().toString()
      return answer(request, reply, { what: 'index', name, find: sideIndex })
    })
    app.get<{ Params: { chain: string } }>('/v1/prefetch/:chain', async (request, reply) => {
      const { chain } = request.params
      if (!isDigest(chain)) return reply.code(400).type('text/plain').send('that is no chain ID')
      return answer(request, reply, { what: 'prefetch', name: chain, find: prefetchList })
    })
  }
}
