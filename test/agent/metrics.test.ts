import { expect, test } from 'vitest'
import { Metrics } from '../../agent/metrics.ts'

test('every metric of the agent has its unit, or that it is a count, in its name', async () => {
  const metrics = new Metrics()
  metrics.observe(gauges())
  const named = await metrics.registry.getMetricsAsJSON()
  const own = named.map(({ name }) => name).filter((name) => !/^ipdr_(nodejs|process)_/.test(name))
  expect(own.length).toBeGreaterThan(8)
  for (const name of own)
    expect(name).toMatch(/^ipdr_.*(_seconds|_bytes|_total|_depth|_mounts|_peers)$/)
})

test('failures are published before there are any, so that the first of them is an increase', async () => {
  const metrics = new Metrics()
  metrics.hasPolicies(['signed'])
  const lines = await published(metrics)
  for (const line of [
    'ipdr_read_errors_total{code="UNAVAILABLE"} 0',
    'ipdr_read_errors_total{code="INTERNAL"} 0',
    'ipdr_verification_failures_total{what="layer"} 0',
    'ipdr_images_refused_total{policy="signed"} 0',
  ]) {
    expect(lines).toContain(line)
  }
})

test('what is counted is published, by label', async () => {
  const metrics = new Metrics()
  metrics.readWaited(2)
  metrics.readFailed('UNAVAILABLE')
  metrics.fetched('gateway', 1_000)
  metrics.fetched('gateway', 24)
  metrics.fetched('bitswap', 1)
  metrics.verificationFailed('block')
  metrics.call('Snapshots/Prepare', 'OK', 3)
  const lines = await published(metrics)
  for (const line of [
    'ipdr_read_wait_seconds_bucket{le="0.001"} 0',
    'ipdr_read_wait_seconds_bucket{le="0.0025"} 1',
    'ipdr_read_errors_total{code="UNAVAILABLE"} 1',
    'ipdr_fetched_bytes_total{source="gateway"} 1024',
    'ipdr_fetched_bytes_total{source="bitswap"} 1',
    'ipdr_verification_failures_total{what="block"} 1',
    'ipdr_grpc_call_seconds_count{method="Snapshots/Prepare",code="OK"} 1',
  ]) {
    expect(lines).toContain(line)
  }
  expect(metrics.fetchedBySource).toEqual(
    new Map([
      ['gateway', 1_024],
      ['bitswap', 1],
    ]),
  )
  expect(metrics.verificationFailureCount).toBe(1)
})

test('gauges are read at each scrape, and what is gone from them is gone', async () => {
  const metrics = new Metrics()
  const requests = new Map([['read', 5]])
  let mounts = 1
  metrics.observe({ ...gauges(), fuseRequests: () => requests, lazyMounts: () => mounts })
  const first = await metrics.registry.metrics()
  expect(first).toContain('ipdr_fuse_requests_total{opcode="read"} 5')
  expect(first).toContain('ipdr_fetch_queue_depth{priority="prefetch"} 2')
  expect(first).toContain('ipdr_lazy_mounts 1')
  expect(first).toContain('ipdr_prefetched_bytes_total 300')
  expect(first).toContain('ipdr_prefetched_used_bytes_total 200')
  requests.clear()
  mounts = 0
  const second = await metrics.registry.metrics()
  expect(second).not.toContain('opcode="read"')
  expect(second).toContain('ipdr_lazy_mounts 0')
})

test('the percentiles of waits are those of the last thousand', () => {
  const metrics = new Metrics()
  expect(metrics.recentWaitsMs()).toEqual({ p50: 0, p99: 0 })
  for (let wait = 0; wait < 500; wait++) metrics.readWaited(1_000_000)
  for (let wait = 1; wait <= 1_000; wait++) metrics.readWaited(wait)
  expect(metrics.recentWaitsMs()).toEqual({ p50: 500, p99: 990 })
})

/** Lines of what Prometheus would be told. */
async function published({ registry }: Metrics): Promise<string[]> {
  return (await registry.metrics()).split('\n')
}

function gauges(): Parameters<Metrics['observe']>[0] {
  return {
    fuseRequests: () => [],
    prefetched: () => ({ fetchedBytes: 300, usedBytes: 200 }),
    servedBytes: () => 0,
    queueDepths: () => ({ foreground: 1, prefetch: 2, background: 3 }),
    lazyMounts: () => 0,
    storeBytes: async () => 0,
    storeBytesMax: 4_096,
    keptForClusterBytes: () => 0,
    clusterPeers: () => 0,
  }
}
