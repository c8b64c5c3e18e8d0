import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { runIpdr } from '../agent/cli/support/run-ipdr.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode, Publisher } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { type OciRegistry, startOciRegistry } from '../support/oci-registry.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// An image of gzip layers that stays in its registry, and `ipdr index docker://…` run on it: nodes that are told of the index mount it
// from the registry.

const opened = new AsyncDisposableStack()
let registry: OciRegistry
let publisher: Publisher
let layout: OciLayout
let image = ''
let indexing: Awaited<ReturnType<typeof runIpdr>>
let indexes = ''

type IndexDocument = {
  readonly root: string
  readonly layers: readonly { readonly outcome: string }[]
}

const large = randomContent(seeded(71), 24_000_000)

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('indexed-reg'))
  registry = opened.use(await startOciRegistry(scratch))
  publisher = opened.use(await Publisher.start(scratch))
  const pack = (...files: readonly TarPart[]): ReturnType<typeof packLayer> =>
    packLayer(Readable.from([makeTar(...files)]), 'gzip', join(scratch.dir, 'layers'))
  const layers = [
    await pack(...busyboxFiles('cat', 'sleep', 'sha256sum')),
    await pack({ name: 'small', content: 'by the index\n' }, { name: 'large', content: large }),
  ]
  layout = writeOciLayout(join(scratch.dir, 'layout'), { layers, process: { Env: ['PATH=/bin'] } })
  image = await registry.push(layout, 'app')
  const words = ['index', `docker://${image}`, '--repository', publisher.repository]
  indexing = await runIpdr([...words, '--output', 'json'])
  if (indexing.exitCode === 0) indexes = (JSON.parse(indexing.stdout) as IndexDocument).root
}, 180_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

/** Bytes of blobs that the registry has sent to anybody. */
function blobBytesSent(): number {
  return registry.answers
    .filter(({ method, uri }) => method === 'GET' && uri.includes('/blobs/'))
    .reduce((sum, { bytes }) => sum + bytes, 0)
}

test('ipdr index docker://… makes an index of each gzip layer, and moves none of them', async () => {
  expect(indexing).toMatchObject({ exitCode: 0 })
  const { layers } = JSON.parse(indexing.stdout) as IndexDocument
  expect(layers.map(({ outcome }) => outcome)).toEqual(['indexed', 'indexed'])
  const listed = await runIpdr([
    'repository',
    'ls',
    '--output',
    'json',
    '--repository',
    publisher.repository,
  ])
  expect(listed.stdout).toContain(indexes)
})

test('a node that is told of the index runs the image after a part of it, each span checked before it is read', async () => {
  await using node = await LazyNode.start('indexed-reg', {
    publisher,
    registries: { indexes: [indexes] },
  })
  const before = blobBytesSent()
  await node.cri.pullImage(image)
  await using container = await node.startContainer(image, ['sleep', 'infinity'])
  const read = await node.cri.execSync(container.id, ['cat', '/small'])
  expect(read.stdout).toBe('by the index\n')
  const size = layout.layers.reduce((sum, layer) => sum + layer.size, 0)
  expect(blobBytesSent() - before).toBeLessThan(size / 2)
  const path = registry.blobPath(layout.layers[1]?.digest ?? '')
  const honest = readFileSync(path)
  const spoilt = Buffer.from(honest)
  for (let at = spoilt.length - 900_000; at < spoilt.length - 100_000; at++) {
    spoilt[at] = (spoilt[at] ?? 0) ^ 0xff
  }
  writeFileSync(path, spoilt)
  const whole = ['sha256sum', '/large']
  const failed = await node.cri.execSync(container.id, whole)
  expect(failed.stderr).toContain('Input/output error')
  writeFileSync(path, honest)
  expect((await node.cri.execSync(container.id, whole)).exitCode).toBe(0)
}, 120_000)

test('a node that is not told of it has containerd download the image, and says what would help', async () => {
  await using node = await LazyNode.start('plain-reg', { publisher })
  await node.cri.pullImage(image)
  const blobs = await node.downloadedBlobs()
  for (const { digest } of layout.layers) expect(blobs).toContain(digest)
  const said = node.agent.lines.map(({ msg }) => msg ?? '').join('\n')
  expect(said).toMatch(/no index under registries.indexes \(ipdr index docker:\/\/… makes one\)/)
}, 120_000)

test('a registry that is not there, and a name that is none, are told apart by their exit codes', async () => {
  const repository = ['--repository', publisher.repository]
  const unreachable = await runIpdr(['index', 'docker://127.0.0.1:1/none', ...repository])
  expect(unreachable.exitCode).toBe(69)
  const nonsense = await runIpdr(['index', 'docker://UPPER/case:', ...repository])
  expect(nonsense.exitCode).toBe(2)
}, 60_000)
