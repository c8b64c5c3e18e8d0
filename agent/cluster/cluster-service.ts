import type { FastifyPluginAsync, FastifyReply } from 'fastify'
import { CodedError } from '../../snapshotter/errors.ts'
import { isDigest } from '../../snapshotter/oci/digest.ts'
import { parseCid } from '../../snapshotter/oci/parse-cid.ts'

type Collaborators = {
  /** The side index of the blob with this CIDv1. Rejects with CodedError NOT_FOUND. */
  readonly sideIndex: (blobCid: string) => Promise<Uint8Array>
  /** The prefetch list of the image with this chain ID. Rejects with CodedError NOT_FOUND. */
  readonly prefetchList: (layerChainId: string) => Promise<Uint8Array>
  readonly onAnswer: (what: 'index' | 'prefetch', found: boolean) => void
}

/**
 * What this node found out about layers, for the agents of its cluster: `GET /v1/indexes/<blob CID>` and
 * `GET /v1/prefetch/<chain ID>`, each answered with the bytes or 404. Who may ask is TLS' business.
 */
export function clusterService({
  sideIndex,
  prefetchList,
  onAnswer,
}: Collaborators): FastifyPluginAsync {
  const answer = async (
    reply: FastifyReply,
    what: 'index' | 'prefetch',
    find: Promise<Uint8Array>,
  ): Promise<FastifyReply> => {
    try {
      const bytes = await find
      onAnswer(what, true)
      return reply.type('application/octet-stream').send(Buffer.from(bytes))
    } catch (error) {
      if (!(error instanceof CodedError) || error.code !== 'NOT_FOUND') throw error
      onAnswer(what, false)
      return reply.code(404).type('text/plain').send(error.message)
    }
  }
  return async (app) => {
    app.get<{ Params: { cid: string } }>('/v1/indexes/:cid', async ({ params }, reply) => {
      const cid = parseCid(params.cid)
      if (cid === undefined) return reply.code(400).type('text/plain').send('that is no CID')
      return answer(reply, 'index', sideIndex(cid.toV1().toString()))
    })
    app.get<{ Params: { chain: string } }>('/v1/prefetch/:chain', async ({ params }, reply) => {
      const { chain } = params
      if (!isDigest(chain)) return reply.code(400).type('text/plain').send('that is no chain ID')
      return answer(reply, 'prefetch', prefetchList(chain))
    })
  }
}
