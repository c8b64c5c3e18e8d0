import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pino } from 'pino'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { adminService } from '../../agent/admin-service.ts'
import { GrpcServer } from '../../agent/grpc-server.ts'
import { Metrics } from '../../agent/metrics.ts'
import { connect, type ServiceClient } from '../../proto/client.ts'
import { agentContract } from '../../proto/load.ts'
import type { AgentDefinition, AgentHandlers } from '../../proto/types/ipdr/v1/Agent.ts'
import type { PullProgress__Output } from '../../proto/types/ipdr/v1/PullProgress.ts'
import { LazyNode } from '../snapshotter/layers/lazy-node.ts'
import {
  gzipLayer,
  indexedLayer,
  type PublishedImage,
  publishImage,
} from '../snapshotter/layers/published-image.ts'
import { failureOf } from '../support/failure-of.ts'
import { makeTar } from '../support/make-tar.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { seeded } from '../support/seeded.ts'
import { sideIndexOf } from '../support/side-index-of.ts'

type Admin = ServiceClient<AgentDefinition, AgentHandlers>

const call = { signal: new AbortController().signal }
const opened = new AsyncDisposableStack()
const tar = makeTar({ name: 'bin/tool', content: randomContent(seeded(1), 900_000) })
const gzipped = makeTar({ name: 'etc/conf', content: 'conf' })
let node: LazyNode
let admin: Admin
let image: PublishedImage

beforeAll(async () => {
  const blocks = new MemoryBlocks()
  image = await publishImage(blocks, [await indexedLayer(tar), gzipLayer(gzipped)])
  node = opened.use(await LazyNode.open(blocks))
  admin = await listenWith(node.snapshotter, 'admin.sock')
}, 30_000)

afterAll(async () => await opened.disposeAsync(), 30_000)

/** The service of a snapshotter, on a socket of this name, until all tests are over. */
async function listenWith(snapshotter: LazyNode['snapshotter'], name: string): Promise<Admin> {
  const socketPath = join(node.scratch.run, name)
  const identity = () => ({ peerId: '12D3', addresses: ['/ip4/127.0.0.1/tcp/4001'] })
  const service = adminService(
    { storeBytesMax: 1_000 },
    { snapshotter, metrics: new Metrics(), identity },
  )
  const server = { log: pino({ level: 'silent' }), ...call }
  opened.use(await GrpcServer.listen({ socketPath }, [service], server))
  return opened.use(connect(agentContract(), socketPath))
}

async function pull(reference: string, all: boolean): Promise<PullProgress__Output[]> {
  const steps: PullProgress__Output[] = []
  for await (const step of admin.calls.Pull({ reference, all }, call)) steps.push(step)
  return steps
}

test('a pull tells how far each layer is, and ends when all are', async () => {
  const { layers } = JSON.parse(image.manifest.toString()) as { layers: { digest: string }[] }
  const digests = layers.map(({ digest }) => digest)
  const lazily = await pull(`ipdr.internal/${image.root.toString()}`, false)
  expect(new Set(lazily.map(({ layerDigest }) => layerDigest))).toEqual(new Set(digests))
  expect(lazily.every(({ done }) => done)).toBe(true)
  const [large] = (await admin.calls.ListLayers({}, call)).layers
  expect(Number(large?.presentBytes)).toBeLessThan(tar.length)
  const whole = await pull(image.root.toString(), true)
  const last = whole.findLast(({ layerDigest }) => layerDigest === digests[0])
  expect(last).toMatchObject({
    presentBytes: String(tar.length),
    totalBytes: String(tar.length),
    done: true,
  })
})

test('the index of a gzip layer that was read is what ipdr index makes, and there is none of other layers', async () => {
  await pull(image.root.toString(), false)
  const [zstd, gzip] = (await admin.calls.ListLayers({}, call)).layers
  const indexOf = async (blobCid: string): Promise<Buffer> => {
    const parts: Uint8Array[] = []
    for await (const { bytes } of admin.calls.LayerIndex({ blobCid }, call)) parts.push(bytes)
    return Buffer.concat(parts)
  }
  const index = await indexOf(gzip?.cid ?? '')
  expect(index.equals(await sideIndexOf(gzipLayer(gzipped).blob, gzipped))).toBe(true)
  for (const cid of [zstd?.cid ?? '', 'bafy']) {
    const failure = await failureOf(() => indexOf(cid))
    expect(failure.message).toContain(`there is no index of the layer at ${cid}`)
  }
})

test('layers and images are listed with what makes them lazy or not', async () => {
  await pull(image.root.toString(), false)
  const { layers } = await admin.calls.ListLayers({}, call)
  expect(layers).toMatchObject([
    { format: 'tar+zstd', lazilyReadable: true, whyNot: '', layerSize: String(tar.length) },
    { format: 'tar+gzip', lazilyReadable: false, complete: true, mounted: false },
  ])
  expect(layers[1]?.whyNot).toContain('push it again with ipdr push')
  const { images } = await admin.calls.ListImages({}, call)
  expect(images).toMatchObject([
    {
      rootCid: image.root.toString(),
      manifestDigest: image.manifestDigest,
      layers: layers.map(({ digest }) => digest),
    },
  ])
})

test('the status has mounts, identity and limits; what was waited for names the file', async () => {
  await node.pull(image)
  await using mounted = await node.mount(image)
  await readFile(join(mounted.path, 'bin/tool'))
  const status = await admin.calls.Status({}, call)
  expect(status).toMatchObject({
    rung: 'erofs-file',
    peerId: '12D3',
    addresses: ['/ip4/127.0.0.1/tcp/4001'],
    storeLimitBytes: '1000',
    pid: process.pid,
  })
  expect(status.mounts).toMatchObject([{ layers: 1 }, { layers: 1 }])
  const { reads } = await admin.calls.WaitedFor({ subject: image.manifestDigest }, call)
  for (const { path } of reads) expect(['/bin/tool', '']).toContain(path)
})

test('what cannot be done is refused with a code and a sentence', async () => {
  const missing = await failureOf(() => admin.calls.RemoveLayer({ digest: 'sha256:00' }, call))
  expect(missing).toMatchObject({ code: '5', message: expect.stringContaining('ipdr cache ls') })
  const noImage = await failureOf(() => pull('ipdr.internal/not-a-cid', false))
  expect(noImage).toMatchObject({ code: '3', message: expect.stringContaining('not-a-cid') })
})

test('a layer of which nothing is here any more is not listed', async () => {
  await pull(image.root.toString(), false)
  const { snapshotter } = node
  const [first, second] = snapshotter.layers()
  const lost = Object.create(snapshotter, {
    layers: { value: () => [{ ...first, state: 'lost' }, second] },
  }) as typeof snapshotter
  const { calls } = await listenWith(lost, 'lost.sock')
  const { layers } = await calls.ListLayers({}, call)
  expect(layers.map(({ digest }) => digest)).toEqual([second?.blobDigest])
})
