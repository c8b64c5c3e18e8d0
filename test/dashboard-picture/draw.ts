import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { freePort } from '../support/agent.ts'
import { Daemon } from '../support/daemon.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode, type Publisher } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// `make dashboard-picture`: docs/dashboard.png, the Grafana dashboard over two nodes that work for two minutes, from
// a real Prometheus. With `--again` what Prometheus said last is drawn once more.

const ROOT = join(import.meta.dirname, '../..')
const DASHBOARD = join(ROOT, 'node-image/monitoring/dashboard.json')
/** Kept, so that `--again` draws them once more. */
const ANSWERS = join(ROOT, 'build/dashboard-picture/answers.json')
const PICTURE = join(ROOT, 'docs/dashboard.png')

/** How long the nodes work, in ms. */
const WORK_MS = 120_000

/** How often Prometheus asks, in s; and what Grafana makes of that for $__rate_interval, four times as long at least. */
const SCRAPE_S = 1
const RATE_INTERVAL = '8s'

/** An image that nobody has. */
const MISSING = 'bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi'

/** Pixels: two columns of README, readable when opened; and of a row of the dashboard, with the gap below it. */
const WIDTH = 1600
const ROW_PX = 38

type Panel = {
  readonly title: string
  readonly gridPos: { readonly y: number; readonly h: number }
  readonly targets: readonly { readonly expr: string; readonly legendFormat?: string }[]
}
type Line = { readonly name: string; readonly values: readonly (readonly [number, string])[] }
/** What was asked for each panel, in the dashboard's order. */
type Answers = { readonly range: Range; readonly series: readonly (readonly Line[])[] }
type Range = { readonly startS: number; readonly endS: number }

await using opened = new AsyncDisposableStack()
const scratch = opened.use(Scratch.open('dashboard'))
if (process.argv[2] !== '--again') {
  mkdirSync(dirname(ANSWERS), { recursive: true })
  writeFileSync(ANSWERS, JSON.stringify(await watchNodes()))
}
await draw(JSON.parse(readFileSync(ANSWERS, 'utf8')) as Answers)
console.log(`drawn: ${relative(ROOT, PICTURE)}`)

/** Has two nodes work, and asks Prometheus what the dashboard does. */
async function watchNodes(): Promise<Answers> {
  const first = opened.use(await LazyNode.start('dashboard-a', { storeBytesMax: 72_000_000 }))
  const { publisher } = first
  const second = opened.use(
    await LazyNode.start('dashboard-b', { publisher, storeBytesMax: 72_000_000 }),
  )
  const prometheus = await startPrometheus([
    { node: 'node-a', url: first.agent.monitoringUrl },
    { node: 'node-b', url: second.agent.monitoringUrl },
  ])
  console.log('two nodes work for two minutes …')
  const startS = Date.now() / 1000
  await work(publisher, [first, second])
  const range = { startS, endS: Date.now() / 1000 }
  const { panels } = readDashboard()
  const series = await Promise.all(panels.map((panel) => linesOf(panel, { prometheus, range })))
  return { range, series }
}

function readDashboard(): { readonly panels: readonly Panel[] } {
  return JSON.parse(readFileSync(DASHBOARD, 'utf8')) as { panels: Panel[] }
}

async function startPrometheus(
  targets: readonly { readonly node: string; readonly url: string }[],
): Promise<string> {
  const configPath = join(scratch.dir, 'prometheus.json')
  // YAML is a superset of JSON.
  writeFileSync(
    configPath,
    JSON.stringify({
      global: { scrape_interval: `${SCRAPE_S}s` },
      scrape_configs: [
        {
          job_name: 'ipdr-agent',
          static_configs: targets.map(({ node, url }) => ({
            targets: [new URL(url).host],
            labels: { node },
          })),
        },
      ],
    }),
  )
  const url = `http://127.0.0.1:${await freePort()}`
  const words = [`--config.file=${configPath}`, `--storage.tsdb.path=${join(scratch.dir, 'tsdb')}`]
  const daemon = await Daemon.start(
    scratch,
    'prometheus',
    ['prometheus', ...words, `--web.listen-address=${new URL(url).host}`],
    { PATH: process.env['PATH'] },
  )
  opened.defer(() => daemon.kill())
  await daemon.whenReady(async () => {
    try {
      return (await fetch(`${url}/-/ready`)).ok
    } catch {
      return false
    }
  })
  return url
}

/** Pods of new images come and go on both nodes, and one image is not to be had. */
async function work(publisher: Publisher, nodes: readonly LazyNode[]): Promise<void> {
  const random = seeded(77)
  const untilMs = Date.now() + WORK_MS
  for (let round = 0; Date.now() < untilMs; round++) {
    const cid = await publishImage(publisher, round)
    for (const node of nodes) {
      await node.cri.pullImage(`ipdr.internal/${cid}`)
      const pod = await node.cri.runPodSandbox()
      const read = `for i in $(seq 0 23); do cat /files/$i >/dev/null; sleep 0.${random(3)}; done`
      const command = ['sh', '-c', read]
      const container = await node.cri.createContainer(pod, `ipdr.internal/${cid}`, command)
      await node.cri.startContainer(container)
      await node.cri.whenExited(container, AbortSignal.timeout(60_000))
      await node.cri.removePodSandbox(pod)
    }
    const patience = AbortSignal.timeout(2_000)
    await nodes[0]?.cri.pullImage(`ipdr.internal/${MISSING}`, patience).catch(() => undefined)
    await setTimeout(500)
  }
}

async function publishImage(publisher: Publisher, seed: number): Promise<string> {
  const random = seeded(600 + seed)
  const files = Array.from({ length: 24 }, (_, at) => ({
    name: `files/${at}`,
    content: randomContent(random, 300_000),
  }))
  const tar = makeTar(
    ...busyboxFiles('cat', 'seq', 'sh', 'sleep'),
    { name: 'files/', typeflag: '5', mode: 0o755 },
    ...files,
  )
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  const dir = join(scratch.dir, `layout-${seed}`)
  const process = { Env: ['PATH=/bin'] }
  return await publisher.push(writeOciLayout(dir, { layers: [layer], process }))
}

/** What Prometheus answers to a panel, as Grafana would ask it. */
async function linesOf(
  { targets }: Panel,
  { prometheus, range: { startS, endS } }: { readonly prometheus: string; readonly range: Range },
): Promise<Line[]> {
  const lines = targets.map(async ({ expr, legendFormat = '' }) => {
    const query = expr.replaceAll('$node', '.*').replaceAll('$__rate_interval', RATE_INTERVAL)
    const words = { query, start: `${startS}`, end: `${endS}`, step: `${SCRAPE_S}` }
    const answer = await fetch(
      `${prometheus}/api/v1/query_range?${new URLSearchParams(words).toString()}`,
    )
    if (!answer.ok) throw new Error(`${expr}: ${await answer.text()}`)
    const { data } = (await answer.json()) as {
      data: { result: { metric: Record<string, string>; values: [number, string][] }[] }
    }
    return data.result.map(({ metric, values }) => ({
      name: legendFormat.replaceAll(/\{\{(\w+)\}\}/g, (_, label: string) => metric[label] ?? ''),
      values,
    }))
  })
  return (await Promise.all(lines)).flat()
}

async function draw({ range, series }: Answers): Promise<void> {
  const dashboard = readDashboard()
  const rows = Math.max(...dashboard.panels.map(({ gridPos: { y, h } }) => y + h))
  const size = { width: WIDTH - 16, height: rows * ROW_PX }
  const page = join(scratch.dir, 'page')
  mkdirSync(page)
  const esbuild = join(import.meta.dirname, 'node_modules/.bin/esbuild')
  const bundle = ['--bundle', '--minify', '--jsx=automatic', '--log-level=error']
  await runCommand(esbuild, [
    join(import.meta.dirname, 'page.jsx'),
    ...bundle,
    '--define:process.env.NODE_ENV="production"',
    '--define:global=globalThis',
    ...['svg', 'ttf', 'woff2'].map((kind) => `--loader:.${kind}=dataurl`),
    `--outfile=${join(page, 'page.js')}`,
  ])
  const picture = { dashboard, series, range, size, rowPx: ROW_PX }
  // In the page it is code: nothing in it may end the element.
  const json = JSON.stringify(picture).replaceAll('<', '\\u003c')
  writeFileSync(
    join(page, 'index.html'),
    `<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="page.css"><main></main><script>globalThis.picture = ${json}</script><script src="page.js"></script>`,
  )
  await runCommand('chromium', [
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--hide-scrollbars',
    '--allow-file-access-from-files',
    `--user-data-dir=${join(scratch.dir, 'chromium')}`,
    `--window-size=${WIDTH},${size.height + 16}`,
    '--virtual-time-budget=10000',
    `--screenshot=${PICTURE}`,
    pathToFileURL(join(page, 'index.html')).href,
  ])
}
