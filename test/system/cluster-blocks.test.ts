import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { BenchNode } from '../bench/bench-node.ts'
import { freePort } from '../support/agent.ts'
import { makeCertificates, type NodeCertificate } from '../support/cluster-certificates.ts'
import { CountingGateway } from '../support/counting-gateway.ts'
import { failureOf } from '../support/failure-of.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { incompressible } from '../support/incompressible.ts'
import { Publisher } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'

// Five agents of one cluster, each with its own store and its own FUSE server, and one publisher, whose every byte is counted. All want the
// same image at the same time: four read it through the kernel, one fetches it whole and is killed in the middle.

const NODES = ['one', 'two', 'three', 'four', 'victim', 'late'] as const
const FILES = 24
const FILE_BYTES = 500_000

const opened = new AsyncDisposableStack()
const contents = Array.from({ length: FILES }, (_, file) => incompressible(file, FILE_BYTES))
let gateway: CountingGateway
const nodes: BenchNode[] = []
let reference = ''
let cluster: {
  readonly tls: Record<(typeof NODES)[number], NodeCertificate>
  readonly peers: readonly string[]
}

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('cluster-blocks'))
  const publisher = opened.use(await Publisher.start(scratch))
  const tar = makeTar(...contents.map((content, file) => ({ name: `file-${file}`, content })))
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  const layout = writeOciLayout(join(scratch.dir, 'layout'), { layers: [layer] })
  reference = `ipdr.internal/${await publisher.push(layout)}`
  gateway = opened.use(await CountingGateway.start(publisher.gatewayUrl))
  const tls = await makeCertificates(join(scratch.dir, 'certs'), NODES)
  const names = NODES.filter((name) => name !== 'late')
  const ports = await Promise.all(names.map(freePort))
  const peers = ports.map((port) => `https://127.0.0.1:${port}`)
  cluster = { tls, peers }
  // One after another: each takes a core for some seconds.
  for (const [at, name] of names.entries()) {
    const cluster = { listen: `127.0.0.1:${ports[at]}`, peers, tls: tls[name] }
    nodes.push(opened.use(await BenchNode.start({ gatewayUrl: gateway.url }, { cluster })))
  }
}, 300_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

/** Digests of all files, as a process of its own reads them. */
async function readAll(node: BenchNode): Promise<string[]> {
  await node.pull(reference, { all: false })
  const target = await node.mountLayer(node.layerIds[0] ?? 0, 'fuse')
  const paths = contents.map((_, file) => join(target, `file-${file}`))
  const sums = await runCommand('sha256sum', paths)
  return sums
    .trim()
    .split('\n')
    .map((line) => line.slice(0, 64))
}

async function metric(node: BenchNode, name: string): Promise<number> {
  return (await node.agent.metrics()).get(name) ?? 0
}

test('of an image that five nodes start at once, hardly more than one copy leaves the origin, even though one of them is killed', async () => {
  const victim = nodes.at(-1) as BenchNode
  const readers = nodes.slice(0, -1)
  const [supervisor, worker] = [victim.agent.pid, victim.agent.workerPid]
  const imageBytes = FILES * FILE_BYTES
  gateway.onBytes = (bytes) => {
    if (bytes < imageBytes / 3) return
    gateway.onBytes = () => undefined
    // The supervisor first, which would start another worker.
    for (const pid of [supervisor, worker]) process.kill(pid, 'SIGKILL')
  }
  const killed = failureOf(() => victim.pull(reference, { all: true }))
  const wanted = contents.map((content) => createHash('sha256').update(content).digest('hex'))
  for (const sums of await Promise.all(readers.map(readAll))) expect(sums).toEqual(wanted)
  expect((await killed).message).toMatch(/UNAVAILABLE|dropped|ECONNRESET|closed/i)
  const { bytes, neededBytes } = gateway
  expect(neededBytes).toBeGreaterThan(imageBytes)
  expect(bytes / neededBytes).toBeLessThanOrEqual(1.3)
  for (const node of readers) {
    // Most of what each has came from the others, and each gave some.
    const fromOthers = await metric(node, 'ipdr_fetched_bytes_total{source="cluster"}')
    expect(fromOthers / neededBytes).toBeGreaterThan(0.4)
    expect(await metric(node, 'ipdr_cluster_served_bytes_total')).toBeGreaterThan(0)
    expect(await metric(node, 'ipdr_cluster_kept_bytes')).toBeGreaterThan(0.9 * neededBytes)
  }
}, 180_000)

test('what the cluster has is there for a node that comes later, when the origin is gone', async () => {
  await gateway[Symbol.asyncDispose]()
  const { tls, peers } = cluster
  const late = { peers, listen: `127.0.0.1:${await freePort()}`, tls: tls.late }
  await using node = await BenchNode.start({ gatewayUrl: gateway.url }, { cluster: late })
  const wanted = contents.map((content) => createHash('sha256').update(content).digest('hex'))
  expect(await readAll(node)).toEqual(wanted)
}, 180_000)
