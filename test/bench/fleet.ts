import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Readable } from 'node:stream'
import { makeCertificates } from '../support/cluster-certificates.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { incompressible } from '../support/incompressible.ts'
import { makeTar } from '../support/make-tar.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import type { Measurement } from './bench-context.ts'
import { BenchNode } from './bench-node.ts'
import type { Figure } from './figure.ts'
import { type FleetHost, FleetNetwork, type LinkRates } from './fleet-network.ts'

const SIZES = [1, 5, 20] as const

/** 16 MB that do not compress, in files of 1 MB: 20 nodes read 320 MB in all, which two cores do while the origin sends one copy. */
const FILES = 16
const FILE_BYTES = 1_000_000

/** The link of the origin is what everybody waits for, not the two cores that twenty agents share: 16 MB take 13 s. */
const RATES: LinkRates = { originMbit: 10, nodeMbit: 200 }

const AGENT = join(import.meta.dirname, '../../agent/cli/bin/ipdr-agent')
const IPDR = join(import.meta.dirname, '../../agent/cli/bin/ipdr')
const PORT = 5082

/** Agents of one cluster, each in a network of its own, that start and read one image at the same time, from an origin behind a thin link. */
export const fleet: Measurement = {
  names: ['fleet-origin-5', 'fleet-ready-5', 'fleet-origin-20', 'fleet-ready-20'],
  measure: measureFleet,
}

type Start = {
  /** What left the origin, as the kernel counts it. */
  readonly originBytes: number
  readonly slowestMs: number
}

async function measureFleet({
  publisher,
  say,
}: Parameters<Measurement['measure']>[0]): Promise<Figure[]> {
  await using scratch = Scratch.open('fleet')
  const { reference } = await publisher.push(await randomImage(scratch))
  const starts: Start[] = []
  for (const size of SIZES) {
    say(`starting one image on ${size} nodes`)
    starts.push(await startTogether(size, reference, publisher.repository))
  }
  const [alone, ...together] = starts
  if (alone === undefined) throw new Error('no node was measured')
  return together.flatMap(({ originBytes, slowestMs }, at): Figure[] => {
    const size = SIZES[at + 1] ?? 0
    return [
      {
        name: `fleet-origin-${size}`,
        value: originBytes / alone.originBytes,
        unit: 'x',
        limit: { atMost: 1.3 },
        detail: `of what it sends to one node: ${megabytes(originBytes)} to ${size}, ${megabytes(alone.originBytes)} to one`,
      },
      {
        name: `fleet-ready-${size}`,
        value: slowestMs / alone.slowestMs,
        unit: 'x',
        limit: { atMost: 2 },
        detail: `the slowest of ${size} against one alone: ${seconds(slowestMs)} against ${seconds(alone.slowestMs)}`,
      },
    ]
  })
}

async function startTogether(size: number, reference: string, repository: string): Promise<Start> {
  await using opened = new AsyncDisposableStack()
  const scratch = opened.use(Scratch.open(`fleet-${size}`))
  const network = await FleetNetwork.start(scratch, size, RATES)
  const gatewayUrl = await serve(scratch, network.origin, repository)
  const names = network.nodes.map((_, node) => `node-${node}`)
  const tls = await makeCertificates(join(scratch.dir, 'certs'), names)
  const peers = network.nodes.map(({ address }) => `https://${address}:${PORT}`)
  const nodes: BenchNode[] = []
  for (const [at, { network: own, address }] of network.nodes.entries()) {
    const program = join(scratch.dir, `agent-${at}`)
    writeFileSync(program, `#!/bin/sh\nexec ${own.words.join(' ')} ${AGENT} "$@"\n`)
    chmodSync(program, 0o755)
    const cluster = { listen: `${address}:${PORT}`, peers, tls: tls[`node-${at}`] }
    const config = { program, ...(size > 1 && { cluster }) }
    nodes.push(opened.use(await BenchNode.start({ gatewayUrl }, config)))
  }
  const before = await network.sentByOrigin()
  const times = await Promise.all(nodes.map((node) => readAll(node, reference)))
  return { originBytes: (await network.sentByOrigin()) - before, slowestMs: Math.max(...times) }
}

/** Milliseconds until a pull was answered and every file was read, four at a time, by processes of their own. */
async function readAll(node: BenchNode, reference: string): Promise<number> {
  const started = performance.now()
  await node.pull(reference, { all: false })
  const target = await node.mountLayer(node.layerIds[0] ?? 0, 'fuse')
  const files = Array.from({ length: FILES }, (_, file) => join(target, `file-${file}`))
  await runCommand('xargs', ['-P4', '-n1', 'cksum'], { input: files.join('\n') })
  return performance.now() - started
}

/** `ipdr serve` on the host; gives back the address of its gateway. */
async function serve(
  scratch: Scratch,
  { network, address }: FleetHost,
  repository: string,
): Promise<string> {
  const places = ['--repository', repository, '--gateway', `${address}:8080`]
  const listen = ['--listen', '/ip4/127.0.0.1/tcp/0', '--output', 'json']
  const [file = '', ...words] = [...network.words, IPDR, 'serve', ...places, ...listen]
  const server = spawn(file, words, { stdio: ['ignore', 'pipe', 'inherit'] })
  if (server.pid !== undefined) scratch.own(server.pid)
  const ended = once(server, 'exit').then(() => {
    throw new Error('ipdr serve ended before it served')
  })
  ended.catch(() => undefined)
  await Promise.race([once(createInterface(server.stdout), 'line'), ended])
  return `http://${address}:8080`
}

async function randomImage(scratch: Scratch): Promise<OciLayout> {
  const entries = Array.from({ length: FILES }, (_, file) => ({
    name: `file-${file}`,
    content: incompressible(file, FILE_BYTES),
  }))
  const layers = [
    await packLayer(Readable.from([makeTar(...entries)]), 'gzip', join(scratch.dir, 'layers')),
  ]
  return writeOciLayout(join(scratch.dir, 'layout'), { layers })
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}
