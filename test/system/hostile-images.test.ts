import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { readFile, readlink, stat } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { LAYER_INDEX_ANNOTATION } from '../../snapshotter/toc/layer-index.ts'
import type { LayerToc, TocEntry } from '../../snapshotter/toc/layer-toc.ts'
import { AgentClient } from '../snapshotter/layers/agent-client.ts'
import {
  gzipLayer,
  indexedLayer,
  lyingLayer,
  type PublishedImage,
  plainLayer,
  publishImage,
  type TestLayer,
  zstdLayer,
} from '../snapshotter/layers/published-image.ts'
import { AgentProcess } from '../support/agent.ts'
import { BlockPeer } from '../support/block-peer.ts'
import { failureOf } from '../support/failure-of.ts'
import { base256, makeTar, paxPart, type TarPart, tarPart } from '../support/make-tar.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { mountAll } from '../support/mount-all.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { CommandError, runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

const AGENT = join(import.meta.dirname, '../../agent/cli/bin/ipdr-agent')
const deadlineMs = 90_000
const MiB = 1024 ** 2

// Codes of gRPC, as a client sees them.
const INVALID_ARGUMENT = '3'
const RESOURCE_EXHAUSTED = '8'
const UNAVAILABLE = '14'
const DATA_LOSS = '15'

const opened = new AsyncDisposableStack()
const blocks = new MemoryBlocks()
let scratch: Scratch
let peer: BlockPeer
let agent: AgentProcess
let client: AgentClient

beforeAll(async () => {
  scratch = opened.use(Scratch.open('hostile'))
  peer = opened.use(await BlockPeer.serve(blocks.blocks))
  // Small, so that a bomb need not write much before it is found out.
  agent = await AgentProcess.start(scratch, { gateways: [peer.url], storeBytesMax: 128 * MiB })
  client = opened.use(new AgentClient(agent))
}, deadlineMs)

afterAll(async () => await opened.disposeAsync(), deadlineMs)

/** All that a refused image must leave as it was: what is mounted, on disk, in the databases, and the process itself. */
async function remains(of: AgentProcess = agent, by: AgentClient = client): Promise<unknown> {
  const snapshots: string[] = []
  for await (const { name } of by.snapshots.walk()) snapshots.push(name)
  using admin = of.admin()
  const { layers } = await admin.calls.ListLayers({}, { signal: AbortSignal.timeout(10_000) })
  const list = (folder: string): string[] => readdirSync(join(of.root, folder)).toSorted()
  return {
    mounts: [of.root, of.runDir].flatMap((path) => listMounts(path)),
    folders: ['', 'layers', 'm', 'derived', 'snapshots'].map(list),
    snapshots,
    layers: layers.map(({ digest, presentBytes }) => ({ digest, presentBytes })),
    worker: of.workerPid,
  }
}

/** What containerd is told when it asks for the bottom layer. Nothing must remain of the image. */
async function refusal(image: PublishedImage): Promise<{ code: string; message: string }> {
  const before = await remains()
  await client.resolve(image)
  const failure = await failureOf(() => client.claim(image.chainIds[0] ?? ''))
  expect(await remains()).toEqual(before)
  return failure
}

async function pullAll(image: PublishedImage, of = agent): Promise<void> {
  using admin = of.admin()
  const call = { signal: AbortSignal.timeout(60_000) }
  const request = { reference: image.root.toString(), all: true }
  for await (const _ of admin.calls.Pull(request, call)) continue
}

describe('a name that is no image', () => {
  test.each([
    ['a file', () => blocks.addFile(Buffer.from('just text')), 404],
    ['an empty directory', () => blocks.addDirectory({}), 404],
    ['a directory of other things', () => blocks.addDirectory({ 'a/b': Buffer.from('c') }), 404],
    [
      'a manifest that is no JSON',
      () => blocks.addDirectory({ 'manifests/latest': Buffer.from('{'), 'blobs/x': Buffer.of() }),
      400,
    ],
  ])('%s is answered with what is wrong', async (_, publish, status) => {
    const before = await remains()
    const root = await publish()
    const answer = await client.get(`${root.toString()}/manifests/latest`)
    expect(answer.status).toBe(status)
    expect(answer.text).toContain(root.toString())
    expect(await remains()).toEqual(before)
  })

  test('a CID that nobody has is answered with 404 or 503, never with silence', async () => {
    const root = await new MemoryBlocks().addDirectory({ 'manifests/latest': Buffer.from('x') })
    const answer = await client.get(`${root.toString()}/manifests/latest`)
    expect([404, 503]).toContain(answer.status)
    expect(answer.text).toContain(`block ${root.toString()} cannot be had`)
  })

  test('a manifest, or a config, that is not the one of its digest is refused', async () => {
    const image = await publishImage(blocks, [plainLayer(makeTar({ name: 'x' }))])
    const other = `sha256:${'ab'.repeat(32)}`
    const lying = await blocks.addDirectory({
      [`manifests/${other}`]: image.manifest,
      'blobs/x': Buffer.of(),
    })
    const wrongManifest = await client.get(`${lying.toString()}/manifests/${other}`)
    expect(wrongManifest).toMatchObject({ status: 502, text: expect.stringContaining(other) })
    const { config } = JSON.parse(image.manifest.toString()) as { config: { digest: string } }
    const wrong = await blocks.addDirectory({
      'manifests/latest': image.manifest,
      [`blobs/${config.digest}`]: randomContent(seeded(1), 500),
    })
    const answer = await client.get(`${wrong.toString()}/manifests/latest`)
    expect(answer).toMatchObject({ status: 502, text: expect.stringContaining(config.digest) })
  })
})

describe('a layer that cannot be', () => {
  const random = seeded(2)
  const good = makeTar(
    { name: 'a', content: randomContent(random, 600_000) },
    { name: 'b', content: randomContent(random, 600_000) },
  )
  const claiming = (blob: Uint8Array): TestLayer => ({ blob, diffId: digestOf(good) })
  const half = (blob: Uint8Array): TestLayer => claiming(blob.subarray(0, blob.length / 2))
  const tarOf = (...parts: TarPart[]): TestLayer => plainLayer(makeTar(...parts))
  const sized = (size: bigint) => ({ name: 'f', raw: new Map([[124, base256(size, 12)]]) })

  const refused: [string, () => TestLayer | Promise<TestLayer>, string, RegExp][] = [
    ['truncated gzip', () => half(gzipLayer(good).blob), DATA_LOSS, /gzip/],
    ['truncated zstd', () => half(zstdLayer(good).blob), DATA_LOSS, /zstd/],
    ['a truncated tar', () => half(good), DATA_LOSS, /ends/],
    [
      'neither tar nor gzip nor zstd',
      () => claiming(randomContent(seeded(3), 5_000)),
      INVALID_ARGUMENT,
      /encrypted or damaged/,
    ],
    [
      '.. out of the root',
      () => tarOf({ name: '../../etc/passwd' }),
      INVALID_ARGUMENT,
      /climbs out/,
    ],
    [
      '.. out of the root in a hard link',
      () => tarOf({ name: 'x', typeflag: '1', linkName: '../../etc/shadow' }),
      INVALID_ARGUMENT,
      /climbs out/,
    ],
    [
      'a hard link to nothing',
      () =>
        tarOf(
          { name: 'x', typeflag: '1', linkName: 'y' },
          { name: 'y', typeflag: '1', linkName: 'x' },
        ),
      INVALID_ARGUMENT,
      /link/,
    ],
    [
      'a hard link to a directory',
      () => tarOf({ name: 'd/', typeflag: '5' }, { name: 'd/up', typeflag: '1', linkName: 'd' }),
      INVALID_ARGUMENT,
      /link/,
    ],
    [
      'a loop of symlinks that a path leads through',
      () =>
        tarOf(
          { name: 'a', typeflag: '2', linkName: 'b' },
          { name: 'b', typeflag: '2', linkName: 'a' },
          { name: 'a/file' },
        ),
      INVALID_ARGUMENT,
      /symlink/,
    ],
    [
      'a name of 5,000 bytes',
      () => tarOf(paxPart([['path', 'n'.repeat(5_000)]]), { name: 'n' }),
      INVALID_ARGUMENT,
      /5000 bytes long/,
    ],
    [
      'a negative size',
      () => tarOf({ name: 'f', raw: new Map([[124, Buffer.alloc(12, 0xff)]]) }),
      INVALID_ARGUMENT,
      /size|negative/,
    ],
    ['an absurd size', () => tarOf(sized(2n ** 62n)), INVALID_ARGUMENT, /size/],
    ['a size beyond its end', () => tarOf(sized(2n ** 40n)), DATA_LOSS, /ends|beyond/],
    [
      'a gzip with other content than its config says',
      () => ({ ...gzipLayer(good), diffId: digestOf(Buffer.from('x')) }),
      DATA_LOSS,
      /the image says/,
    ],
  ]

  test.each(refused)(
    '%s is refused with a reason, and nothing of it stays',
    async (_, layer, code, reason) => {
      const failure = await refusal(await publishImage(blocks, [await layer()]))
      expect(failure).toMatchObject({ code, message: expect.stringMatching(reason) })
    },
    deadlineMs,
  )

  test(
    'a bomb is refused before it fills the disk',
    async () => {
      const zeros = gzipSync(Buffer.alloc(16 * MiB))
      const header = gzipSync(tarPart({ name: 'bomb', size: 2 ** 36 }).subarray(0, 512))
      const blob = Buffer.concat([header, ...Array.from({ length: 64 }, () => zeros)])
      const image = await publishImage(blocks, [{ blob, diffId: digestOf(Buffer.from('bomb')) }])
      const failure = await refusal(image)
      expect(failure).toMatchObject({ code: RESOURCE_EXHAUSTED })
    },
    deadlineMs,
  )

  test(
    'ten million entries are refused at the limit, in bounded time and memory',
    async () => {
      await using inner = scratch.inner('entries')
      const many = await AgentProcess.start(inner, { gateways: [peer.url] })
      using caller = new AgentClient(many)
      const headers = Array.from({ length: 10_000 }, (_, index) =>
        tarPart({ name: `dir/${index}`, typeflag: '0' }),
      )
      const frame = zstdCompressSync(Buffer.concat(headers))
      const blob = Buffer.concat(Array.from({ length: 1_000 }, () => frame))
      const image = await publishImage(blocks, [{ blob, diffId: digestOf(Buffer.from('many')) }])
      const before = await remains(many, caller)
      await caller.resolve(image)
      const started = performance.now()
      const failure = await failureOf(() => caller.claim(image.chainIds[0] ?? ''))
      expect(failure).toMatchObject({ code: RESOURCE_EXHAUSTED })
      expect(performance.now() - started).toBeLessThan(60_000)
      const status = readFileSync(`/proc/${many.workerPid}/status`, 'utf8')
      const peakKiB = Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1])
      expect(peakKiB / 1024).toBeLessThan(2_048)
      expect(await remains(many, caller)).toEqual(before)
    },
    deadlineMs,
  )

  test('names that begin with a slash or lead through a symlink stay inside the image', async () => {
    const image = await publishImage(blocks, [
      tarOf(
        { name: '/etc/absolute', content: 'inside' },
        { name: 'out', typeflag: '2', linkName: '../../../../../tmp' },
        { name: 'out/escaped', content: 'inside' },
        { name: 'loop', typeflag: '2', linkName: 'loop' },
      ),
    ])
    await client.pull(image)
    await using mounted = await client.mount(image, scratch)
    expect(await readFile(join(mounted.path, 'etc/absolute'), 'utf8')).toBe('inside')
    expect(await readFile(join(mounted.path, 'tmp/escaped'), 'utf8')).toBe('inside')
    await expect(stat('/tmp/escaped')).rejects.toThrow('ENOENT')
    await expect(stat(join(mounted.path, 'loop'))).rejects.toThrow('ELOOP')
    expect(await readlink(join(mounted.path, 'loop'))).toBe('loop')
  })
})

describe('an index that lies', () => {
  const tar = makeTar(
    { name: 'a', content: randomContent(seeded(4), 400_000) },
    { name: 'b', content: randomContent(seeded(5), 400_000) },
  )
  const moved = (change: (entry: TocEntry) => TocEntry) => (toc: LayerToc) => ({
    ...toc,
    entries: toc.entries.map((entry) => (entry.path === 'b' ? change(entry) : entry)),
  })
  const extent = (by: { offset?: number; length?: number }) =>
    moved((entry) => ({
      ...entry,
      extents: (entry.extents ?? []).map((each) => ({
        ...each,
        layerOffset: each.layerOffset + (by.offset ?? 0),
        length: each.length + (by.length ?? 0),
      })),
    }))

  test.each([
    [
      'a file outside the layer',
      () => lyingLayer(tar, extent({ offset: 2 ** 30 })),
      /in a layer of/,
    ],
    ['a file off the grid', () => lyingLayer(tar, extent({ offset: 7 })), /off the tar's grid/],
    [
      'more content than the file has',
      () => lyingLayer(tar, extent({ length: 512 })),
      /in \d+ bytes/,
    ],
    [
      'a name that climbs out',
      () =>
        lyingLayer(
          tar,
          moved((entry) => ({ ...entry, path: '../b' })),
        ),
      /climbs out/,
    ],
  ])('%s is refused', async (_, layer, reason) => {
    const failure = await refusal(await publishImage(blocks, [await layer()]))
    expect(failure).toMatchObject({
      code: INVALID_ARGUMENT,
      message: expect.stringMatching(reason),
    })
  })

  test('one that is not the index its manifest names is refused', async () => {
    const layer = await indexedLayer(tar)
    const [offset, length] = (layer.annotations?.[LAYER_INDEX_ANNOTATION] ?? '').split(':')
    const annotation = `${offset}:${length}:${'0'.repeat(64)}`
    const annotations = { [LAYER_INDEX_ANNOTATION]: annotation }
    const failure = await refusal(await publishImage(blocks, [{ ...layer, annotations }]))
    expect(failure).toMatchObject({ code: DATA_LOSS, message: expect.stringContaining('digest') })
  })

  test('a file that is not the one of the tar is found out when the layer is whole, and no longer read', async () => {
    const other = makeTar(
      { name: 'first', content: randomContent(seeded(8), 400_000) },
      { name: 'b', content: randomContent(seeded(9), 400_000) },
    )
    const image = await publishImage(blocks, [await lyingLayer(other, extent({ offset: 512 }))])
    await client.pull(image)
    const failure = await failureOf(() => pullAll(image))
    expect(failure).toMatchObject({
      code: DATA_LOSS,
      message: expect.stringContaining('is not what'),
    })
    expect(await failureOf(() => client.view(image))).toMatchObject({ code: DATA_LOSS })
    const metrics = await agent.metrics()
    expect(metrics.get('ipdr_verification_failures_total{what="toc"}')).toBe(1)
    await client.snapshots.remove(image.chainIds[0] ?? '')
  })
})

describe('blocks that are not what their CID says', () => {
  const content = randomContent(seeded(6), 900_000)
  const tar = makeTar({ name: 'start', content: 'x' }, { name: 'late', content })

  test(
    'a lying gateway gets nothing through: reads are EIO, a whole pull is DATA_LOSS, and honest bytes still count',
    async () => {
      const layer = await indexedLayer(tar)
      const image = await publishImage(blocks, [layer])
      await client.pull(image)
      await using mounted = await client.mount(image, scratch)
      peer.misbehaviour = ({ url = '' }, response) => {
        const cid = url.replace('/ipfs/', '').replace('?format=raw', '')
        const lie = Buffer.from(blocks.blocks.get(cid) ?? '')
        lie[0] = (lie[0] ?? 0) ^ 1
        response.writeHead(200).end(lie)
      }
      onTestFinished(() => {
        peer.misbehaviour = undefined
      })
      const late = join(mounted.path, 'late')
      for (let attempt = 0; attempt < 2; attempt++) {
        const failure = await failureOf(() => runCommand('cat', [late]))
        expect(failure.message).toContain('Input/output error')
      }
      expect(await failureOf(() => pullAll(image))).toMatchObject({ code: DATA_LOSS })
      const metrics = await agent.metrics()
      expect(metrics.get('ipdr_verification_failures_total{what="block"}')).toBeGreaterThan(0)
      expect(metrics.get('ipdr_read_errors_total{code="DATA_LOSS"}')).toBeGreaterThan(0)
      const told = () => agent.lines.find(({ msg }) => msg?.includes('of /late (layer sha256:'))
      await expect.poll(told).toMatchObject({ code: 'DATA_LOSS' })

      const unseen = await publishImage(blocks, [plainLayer(makeTar({ name: 'unseen' }))])
      const answer = await client.get(`${unseen.root.toString()}/manifests/latest`)
      expect(answer.status).toBe(502)

      peer.misbehaviour = undefined
      expect((await runCommand('sha256sum', [late])).slice(0, 64)).toBe(digestOf(content).slice(7))
    },
    deadlineMs,
  )

  test(
    'with no provider in reach a pull fails with 503, a read with EIO, and what is here goes on',
    async () => {
      await using inner = scratch.inner('alone')
      await using away = await BlockPeer.serve(blocks.blocks)
      const alone = await AgentProcess.start(inner, {
        gateways: [away.url],
        foregroundDeadlineMs: 2_000,
      })
      using caller = new AgentClient(alone)
      const image = await publishImage(blocks, [await indexedLayer(tar)])
      const unseen = await publishImage(blocks, [plainLayer(makeTar({ name: 'unseen' }))])
      await caller.pull(image)
      await using mounted = await caller.mount(image, inner)
      const early = join(mounted.path, 'start')
      expect(await readFile(early, 'utf8')).toBe('x')
      away.misbehaviour = (request) => request.socket.destroy()
      const before = await remains(alone, caller)
      const { status, text } = await caller.get(`${unseen.root.toString()}/manifests/latest`)
      expect(status).toBe(503)
      expect(text).toContain(unseen.root.toString())
      const failure = await failureOf(() => runCommand('cat', [join(mounted.path, 'late')]))
      expect(failure.message).toContain('Input/output error')
      expect(await failureOf(() => pullAll(image, alone))).toMatchObject({ code: UNAVAILABLE })
      expect(await readFile(join(mounted.path, 'start'), 'utf8')).toBe('x')
      expect(await remains(alone, caller)).toEqual(before)
    },
    deadlineMs,
  )
})

test(
  'a full disk refuses what must be stored, and does without what need not be',
  async () => {
    await using inner = scratch.inner('full')
    const disk = join(scratch.dir, 'disk.img')
    await runCommand('truncate', ['--size', '48M', disk])
    await runCommand('mkfs.ext4', ['-q', '-F', disk])
    mkdirSync(join(inner.dir, 'agent'))
    await runCommand('mount', ['-o', 'loop', disk, join(inner.dir, 'agent')])
    const cramped = await AgentProcess.start(inner, { gateways: [peer.url] })
    using caller = new AgentClient(cramped)
    const content = randomContent(seeded(7), 60 * MiB)
    const tar = makeTar({ name: 'large', content })
    const before = await remains(cramped, caller)

    const streamed = await publishImage(blocks, [zstdLayer(tar)])
    await caller.resolve(streamed)
    const failure = await failureOf(() => caller.claim(streamed.chainIds[0] ?? ''))
    expect(failure.message).toMatch(/ENOSPC|no space|disk/)
    expect(failure).toMatchObject({ code: RESOURCE_EXHAUSTED })
    expect(await remains(cramped, caller)).toEqual(before)

    // Other bytes, for the chain ID must be another.
    const lazy = await publishImage(blocks, [
      await indexedLayer(makeTar({ name: 'lazy', content })),
    ])
    await caller.pull(lazy)
    await using mounted = await caller.mount(lazy, inner)
    const sum = await runCommand('sha256sum', [join(mounted.path, 'lazy')])
    expect(sum.slice(0, 64)).toBe(digestOf(content).slice(7))
  },
  deadlineMs,
)

type Program = {
  readonly pid: number
  readonly lines: string[]
  /** Exit code. */
  readonly ended: Promise<number | null>
  /** The first line, past or to come, that holds `text`. */
  said(text: string): Promise<string>
}

/** Runs the agent's program as a service manager would, with its log as lines. */
function runAgent(owner: Scratch, args: readonly string[]): Program {
  const child = spawn(AGENT, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  if (child.pid === undefined) throw new Error('the agent could not be started')
  owner.own(child.pid)
  const lines: string[] = []
  const watchers = new Set<() => void>()
  for (const input of [child.stdout, child.stderr]) {
    createInterface({ input }).on('line', (line) => {
      lines.push(line)
      for (const watch of watchers) watch()
    })
  }
  const ended = once(child, 'close').then(([code]) => code as number | null)
  return {
    pid: child.pid,
    lines,
    ended,
    said(text) {
      const { promise, resolve } = Promise.withResolvers<string>()
      const watch = (): void => {
        const found = lines.find((line) => line.includes(text))
        if (found !== undefined) resolve(found)
      }
      watchers.add(watch)
      watch()
      return promise
    },
  }
}

function writeConfig(owner: Scratch, config: object = {}): string {
  const path = join(owner.dir, 'config.json')
  const places = { root: join(owner.dir, 'root'), runDir: join(owner.run, 'agent') }
  const free = { listen: '127.0.0.1:0' }
  writeFileSync(path, JSON.stringify({ ...places, registry: free, monitoring: free, ...config }))
  return path
}

describe('an agent that cannot run', () => {
  test(
    'for an unknown key in its configuration says which, and mounts nothing',
    async () => {
      await using inner = scratch.inner('config')
      const path = writeConfig(inner, { fetch: { concurency: 3 } })
      const program = runAgent(inner, ['--config', path])
      expect(await program.ended).toBe(78)
      expect(program.lines.join('\n')).toContain('concurency')
      expect(listMounts(inner.run)).toEqual([])
    },
    deadlineMs,
  )

  test(
    'for want of root says so, and mounts nothing',
    async () => {
      await using inner = scratch.inner('nobody')
      const path = writeConfig(inner)
      const flags = ['--reuid=65534', '--regid=65534', '--clear-groups', AGENT, '--config', path]
      const failure = await runCommand('setpriv', flags).catch((error: unknown) => error)
      expect(failure).toBeInstanceOf(CommandError)
      expect(failure).toMatchObject({ exitCode: 77, stderr: expect.stringContaining('needs root') })
      expect(listMounts(inner.run)).toEqual([])
    },
    deadlineMs,
  )

  test(
    'for a socket that another process answers on says so, and starts once it is free',
    async () => {
      await using inner = scratch.inner('socket')
      const path = writeConfig(inner)
      const socketPath = join(inner.run, 'agent/snapshotter.sock')
      mkdirSync(join(inner.run, 'agent'))
      const squatter = createServer().listen(socketPath)
      await once(squatter, 'listening')
      const program = runAgent(inner, ['--config', path])
      expect(await program.said('cannot go on')).toContain(socketPath)
      squatter.close()
      await program.said('data worker is ready')
      process.kill(program.pid, 'SIGTERM')
      expect(await program.ended).toBe(0)
      expect([inner.dir, inner.run].flatMap((folder) => listMounts(folder))).toEqual([])
    },
    deadlineMs,
  )

  test(
    'on the root of another agent says so and leaves that one alone',
    async () => {
      await using inner = scratch.inner('second')
      const image = await publishImage(blocks, [plainLayer(makeTar({ name: 'shared-root' }))])
      await client.pull(image)
      await using mounted = await client.mount(image, scratch)
      const before = await remains()
      const program = runAgent(inner, ['--config', writeConfig(inner, { root: agent.root })])
      expect(await program.ended).toBe(1)
      expect(program.lines.join('\n')).toContain(`${agent.root} is in use by another agent`)
      expect(await remains()).toEqual(before)
      expect((await stat(join(mounted.path, 'shared-root'))).isFile()).toBe(true)
    },
    deadlineMs,
  )
})

test(
  'without FUSE nothing is claimed: images download whole, unpack and are mounted',
  async () => {
    await using inner = scratch.inner('whole')
    await using peer = await BlockPeer.serve(blocks.blocks)
    const path = writeConfig(inner, { ipfs: { gateways: [peer.url], bitswap: false } })
    // As the supervisor starts it, but without a connection to hand on.
    const program = runAgent(inner, ['data-worker', '--config', path])
    await program.said('layers are not mounted lazily, images are downloaded whole and unpacked')
    const { registry } = JSON.parse(await program.said('"ready"')) as { registry: string }
    const place = {
      registryUrl: registry,
      snapshotterSocket: join(inner.run, 'agent/snapshotter.sock'),
    }
    using caller = new AgentClient(place)
    const tar = makeTar({ name: 'file', content: 'whole' })
    const layer = await indexedLayer(tar)
    const image = await publishImage(blocks, [layer])
    await caller.resolve(image)
    expect((await failureOf(() => caller.claim(image.chainIds[0] ?? ''))).message).toContain(
      'not claimed',
    )

    const url = `${registry}/v2/${image.root.toString()}/blobs/${digestOf(layer.blob)}`
    const response = await fetch(url, { signal: AbortSignal.timeout(20_000) })
    const blob = Buffer.from(await response.arrayBuffer())
    expect(digestOf(blob)).toBe(digestOf(layer.blob))
    const unpacked = join(inner.dir, 'unpack')
    mkdirSync(unpacked)
    {
      await using _ = await mountAll(
        await caller.snapshots.mounts(`extract-${image.chainIds[0]}`),
        unpacked,
      )
      const unpack = spawn('tar', ['--zstd', '-x', '-C', unpacked], {
        stdio: ['pipe', 'inherit', 'inherit'],
      })
      const ended = once(unpack, 'close')
      await pipeline(Readable.from([blob]), unpack.stdin)
      expect(await ended).toEqual([0, null])
    }
    await caller.snapshots.commit(image.chainIds[0] ?? '', `extract-${image.chainIds[0]}`)
    await using mounted = await caller.mount(image, inner)
    expect(await readFile(join(mounted.path, 'file'), 'utf8')).toBe('whole')
    process.kill(program.pid, 'SIGTERM')
    expect(await program.ended).toBe(0)
  },
  deadlineMs,
)
