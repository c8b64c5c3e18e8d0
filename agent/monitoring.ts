import type { FastifyPluginAsync } from 'fastify'
import type { Metrics } from './metrics.ts'

/** Undefined while all is well, else one sentence that says what is not. */
export type Readiness = () => string | undefined

/** /metrics for Prometheus; /livez: the event loop turns; /readyz: whoever this worker serves may call. */
export function monitoringRoutes({
  metrics,
  readiness,
}: {
  readonly metrics: Pick<Metrics, 'registry'>
  readonly readiness: Readiness
}): FastifyPluginAsync {
  return async (app) => {
    app.get('/metrics', async (_request, reply) => {
      return reply.type(metrics.registry.contentType).send(await metrics.registry.metrics())
    })
    app.get('/livez', async (_request, reply) => reply.type('text/plain').send('ok\n'))
    app.get('/readyz', async (_request, reply) => {
      const problem = readiness()
      return reply
        .code(problem === undefined ? 200 : 503)
        .type('text/plain')
        .send(`${problem ?? 'ok'}\n`)
    })
  }
}
