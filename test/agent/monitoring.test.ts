import { fastify } from 'fastify'
import { expect, test } from 'vitest'
import { Metrics } from '../../agent/metrics.ts'
import { monitoringRoutes } from '../../agent/monitoring.ts'

test('it is alive while it answers, and ready until there is a reason against it', async () => {
  await using app = fastify()
  let problem: string | undefined
  await app.register(monitoringRoutes({ metrics: new Metrics(), readiness: () => problem }))
  expect(await app.inject('/livez')).toMatchObject({ statusCode: 200, body: 'ok\n' })
  expect(await app.inject('/readyz')).toMatchObject({ statusCode: 200, body: 'ok\n' })
  problem = 'stopping'
  expect(await app.inject('/readyz')).toMatchObject({ statusCode: 503, body: 'stopping\n' })
  expect((await app.inject('/livez')).statusCode).toBe(200)
})

test('metrics are in the format that Prometheus asks for', async () => {
  await using app = fastify()
  await app.register(monitoringRoutes({ metrics: new Metrics(), readiness: () => undefined }))
  const { statusCode, headers, body } = await app.inject('/metrics')
  expect(statusCode).toBe(200)
  expect(headers['content-type']).toMatch(/^text\/plain; version=0\.0\.4/)
  expect(body).toContain('# TYPE ipdr_read_wait_seconds histogram')
})
