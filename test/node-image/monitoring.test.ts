import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { dumpYaml, loadYaml } from '@kubernetes/client-node'
import { beforeAll, expect, onTestFinished, test } from 'vitest'
import { parseConfig } from '../../agent/config.ts'
import { Metrics } from '../../agent/metrics.ts'
import { agentConfig, agentDaemonSet } from '../support/kubernetes-manifests.ts'
import { promtool } from '../support/promtool.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'

const MONITORING = join(import.meta.dirname, '../../node-image/monitoring')

type Rule = {
  readonly alert: string
  readonly expr: string
  readonly annotations: Readonly<Record<'summary' | 'runbook', string>>
}
type Group = { readonly name: string; readonly rules: readonly Rule[] }
type Panel = {
  readonly title: string
  readonly targets: readonly { readonly expr: string }[]
}

const read = (name: string): string => readFileSync(join(MONITORING, name), 'utf8')
const { groups } = loadYaml<{ spec: { groups: Group[] } }>(read('alerts.yaml')).spec
const alerts = groups.flatMap(({ rules }) => rules)
const { panels } = JSON.parse(read('dashboard.json')) as { panels: Panel[] }
/** With what Grafana puts into them. */
const queries = panels.flatMap(({ targets }) =>
  targets.map(({ expr }) => expr.replaceAll('$__rate_interval', '5m').replaceAll('$node', '.*')),
)

/** Every name that the agent publishes, those of histograms included. */
let published: ReadonlySet<string>

beforeAll(async () => {
  const metrics = new Metrics()
  metrics.observe({
    fuseRequests: () => [],
    servedBytes: () => 0,
    prefetched: () => ({ fetchedBytes: 0, usedBytes: 0 }),
    queueDepths: () => ({ foreground: 0, prefetch: 0, background: 0 }),
    lazyMounts: () => 0,
    storeBytes: async () => 0,
    storeBytesMax: 0,
    keptForClusterBytes: () => 0,
    clusterPeers: () => 0,
  })
  const found = await metrics.registry.getMetricsAsJSON()
  published = new Set(
    found.flatMap(({ name, type }) =>
      String(type) === 'histogram' ? [`${name}_bucket`, `${name}_count`, `${name}_sum`] : [name],
    ),
  )
})

test.each([
  ['alert', alerts.map(({ expr }) => expr)],
  ['panel', queries],
])('every metric that an %s asks for is one that the agent publishes', (_, expressions) => {
  const asked = expressions.flatMap((expr) => expr.match(/\bipdr_\w+/g) ?? [])
  expect(asked.length).toBeGreaterThan(8)
  for (const name of asked) expect(published).toContain(name)
})

test('the dashboard shows waits, sources, the store, queues, mounts, failures and calls', () => {
  const titles = panels.map(({ title }) => title)
  for (const title of [
    'How long reads waited',
    'Bytes by source',
    'Store and its budget',
    'Fetches that wait for a place',
    'Lazy mounts',
    'Failures',
    'gRPC calls',
  ]) {
    expect(titles).toContain(title)
  }
})

test('every alert leads to a heading of docs/operations.md', () => {
  const page = readFileSync(join(MONITORING, '../../docs/operations.md'), 'utf8')
  // As GitHub makes anchors of headings.
  const anchors = [...page.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replaceAll(/[^\w -]/g, '')
      .replaceAll(' ', '-'),
  )
  expect(alerts.length).toBeGreaterThan(5)
  for (const { alert, annotations } of alerts) {
    const [path, anchor = ''] = annotations.runbook.split('#')
    const isThere = anchors.includes(anchor)
    expect({ alert, path, isThere }).toEqual({ alert, path: 'docs/operations.md', isThere: true })
  }
})

test('Prometheus asks the port that the DaemonSet names, which is that of the configuration', () => {
  const { podMetricsEndpoints, selector } = loadYaml<{
    spec: { podMetricsEndpoints: { port: string; path: string }[]; selector: object }
  }>(read('pod-monitor.yaml')).spec
  const set = agentDaemonSet()
  expect(set.spec?.selector).toEqual(selector)
  const containers = set.spec?.template.spec?.containers ?? []
  const ports = containers.flatMap(({ ports = [] }) => ports)
  const { port } = parseConfig(agentConfig()).monitoring.listen
  expect(ports).toEqual([{ name: 'monitoring', containerPort: port }])
  expect(podMetricsEndpoints).toMatchObject([{ port: 'monitoring', path: '/metrics' }])
})

/** Runs promtool on files of these contents, the first of which it is given. */
async function check(
  words: readonly string[],
  files: Readonly<Record<string, object>>,
): Promise<string> {
  const scratch = Scratch.open('monitoring')
  onTestFinished(() => scratch[Symbol.asyncDispose]())
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(join(scratch.dir, name), dumpYaml(content))
  }
  const [first = ''] = Object.keys(files)
  return await runCommand(promtool(), [...words, first], { cwd: scratch.dir })
}

test('promtool takes every alert, and every query of the dashboard', async () => {
  expect(await check(['check', 'rules'], { 'alerts.yaml': { groups } })).toContain(
    `${alerts.length} rules found`,
  )
  const rules = queries.map((expr, number) => ({ record: `query:${number}`, expr }))
  const recorded = { groups: [{ name: 'queries', rules }] }
  expect(await check(['check', 'rules'], { 'queries.yaml': recorded })).toContain(
    `${queries.length} rules found`,
  )
}, 120_000)

/** What a node publishes on which the thing happens, and one on which it does not: by minute, in promtool's notation. */
const NODES: Readonly<
  Record<string, Readonly<Record<string, readonly [sick: string, well: string]>>>
> = {
  IpdrAgentDown: { 'up{job="ipdr-system/ipdr-agent"}': ['0x60', '1x60'] },
  IpdrWorkerRestarts: { ipdr_process_start_time_seconds: ['0+100x60', '100x50 200x10'] },
  IpdrReadsFail: { 'ipdr_read_errors_total{code="UNAVAILABLE"}': ['0+1x60', '7x60'] },
  IpdrReadsWait: {
    'ipdr_read_wait_seconds_bucket{le="5"}': ['0+90x60', '0+100x60'],
    'ipdr_read_wait_seconds_bucket{le="10"}': ['0+100x60', '0+100x60'],
    'ipdr_read_wait_seconds_bucket{le="+Inf"}': ['0+100x60', '0+100x60'],
  },
  IpdrFetchesQueue: {
    'ipdr_fetch_queue_depth{priority="foreground"}': ['3x60', '3x55 0 3x4'],
    'ipdr_fetch_queue_depth{priority="background"}': ['9x60', '9x60'],
  },
  IpdrBytesNotAsPromised: {
    'ipdr_verification_failures_total{what="block"}': ['0+1x60', '7x60'],
  },
  IpdrStoreOverBudget: {
    ipdr_store_bytes: ['11x60', '10x60'],
    ipdr_store_max_bytes: ['10x60', '10x60'],
  },
  IpdrImagesRefused: { 'ipdr_images_refused_total{policy="p"}': ['0+1x60', '7x60'] },
  IpdrLoginsRefused: { ipdr_registry_logins_refused_total: ['0+1x60', '7x60'] },
  IpdrCallsFail: {
    'ipdr_grpc_call_seconds_count{method="Prepare",code="INTERNAL"}': ['0+1x60', '7x60'],
    'ipdr_grpc_call_seconds_count{method="Prepare",code="ALREADY_EXISTS"}': ['0+1x60', '0+1x60'],
  },
}

/** The series of one node, with its name among the labels. */
function seriesOf(alert: string, node: 'sick' | 'well'): object[] {
  return Object.entries(NODES[alert] ?? {}).map(([name, values]) => {
    const [, metric = '', labels = ''] = /^(\w+)(?:\{(.*)\})?$/.exec(name) ?? []
    const all = [`node="${node}"`, ...(labels === '' ? [] : [labels])]
    return { series: `${metric}{${all.join(',')}}`, values: values[node === 'sick' ? 0 : 1] }
  })
}

test('each alert is raised for the node on which the thing happens, and not for the other', async () => {
  expect(Object.keys(NODES).toSorted()).toEqual(alerts.map(({ alert }) => alert).toSorted())
  const tests = alerts.map(({ alert }) => ({
    interval: '1m',
    input_series: [...seriesOf(alert, 'sick'), ...seriesOf(alert, 'well')],
    promql_expr_test: [
      {
        expr: 'count by (alertname, node) (ALERTS{alertstate="firing"})',
        eval_time: '60m',
        exp_samples: [{ labels: `{alertname="${alert}",node="sick"}`, value: 1 }],
      },
    ],
  }))
  const files = { 'tests.yaml': { rule_files: ['alerts.yaml'], tests }, 'alerts.yaml': { groups } }
  expect(await check(['test', 'rules'], files)).toContain('SUCCESS')
}, 120_000)
