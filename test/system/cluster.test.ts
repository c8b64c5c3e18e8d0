import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { freePort } from '../support/agent.ts'
import { makeCertificates } from '../support/cluster-certificates.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { buildDebianImage } from '../support/images/debian-image.ts'
import { PYTHON } from '../support/images/demo-image.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// Two nodes of one cluster and a Debian with python3 in gzip layers that nobody indexed: the first node reads them whole, the second
// is spared it, and knows what a start will read.

const opened = new AsyncDisposableStack()
let layout: OciLayout
let [first, second]: LazyNode[] = []
let image = ''

beforeAll(async () => {
  const scratch = opened.use(Scratch.open('cluster-certs'))
  const tls = await makeCertificates(join(scratch.dir, 'certs'), ['first', 'second'])
  const port = await freePort()
  layout = await buildDebianImage({
    name: 'python',
    root: { variant: 'minbase' },
    steps: [PYTHON],
  })
  first = opened.use(
    await LazyNode.start('cluster-1', {
      cluster: { listen: `127.0.0.1:${port}`, tls: tls.first },
    }),
  )
  second = opened.use(
    await LazyNode.start('cluster-2', {
      publisher: first.publisher,
      cluster: { peers: [`https://127.0.0.1:${port}`], tls: tls.second },
    }),
  )
  image = `ipdr.internal/${await first.publisher.importAsIs(layout)}`
}, 300_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

const PRINT = ['python3', '-c', 'import json, decimal; print(6 * 7)']

async function output(node: LazyNode, name = image, command = PRINT): Promise<string> {
  await using container = await node.startContainer(name, command)
  await node.cri.whenExited(container.id, AbortSignal.timeout(60_000))
  return await node.cri.logOf(container.id)
}

test('what one node learnt by reading gzip layers whole, another one mounts them by, and fetches a part', async () => {
  if (first === undefined || second === undefined) throw new Error('there are no nodes')
  const blobBytes = layout.layers.reduce((sum, { size }) => sum + size, 0)
  await first.cri.pullImage(image)
  expect(await first.fetchedBytes()).toBeGreaterThanOrEqual(blobBytes)
  expect(await output(first)).toBe('42\n')
  await second.cri.pullImage(image)
  expect((await second.fetchedBytes()) / blobBytes).toBeLessThan(0.5)
  expect(await first.metric('ipdr_cluster_answers_total{what="index",found="true"}')).toBe(
    layout.layers.length,
  )
  expect(await output(second)).toBe('42\n')
  expect((await second.fetchedBytes()) / blobBytes).toBeLessThan(0.5)
}, 180_000)

test('what one node saw a start read, another one fetches before its own start reads it', async () => {
  if (first === undefined || second === undefined) throw new Error('there are no nodes')
  const pushed = `ipdr.internal/${await first.publisher.push(await busyboxImage())}`
  const read = ['/bin/cat', '/large']
  const learned = first.agent.logged('learned what a start of the image')
  await first.cri.pullImage(pushed)
  await output(first, pushed, read)
  await learned
  const before = await second.metric('ipdr_prefetched_used_bytes_total')
  await second.cri.pullImage(pushed)
  await output(second, pushed, read)
  expect(await first.metric('ipdr_cluster_answers_total{what="prefetch",found="true"}')).toBe(1)
  const used = (await second.metric('ipdr_prefetched_used_bytes_total')) - before
  expect(used).toBeGreaterThan(1_000_000)
}, 180_000)

/** An image whose layers are read lazily, and so seen to be read. */
async function busyboxImage(): Promise<OciLayout> {
  const scratch = opened.use(Scratch.open('cluster-image'))
  const tar = makeTar(
    ...busyboxFiles('cat'),
    { name: 'large', content: randomContent(seeded(4), 2_000_000) },
    { name: 'unread', content: randomContent(seeded(5), 2_000_000) },
  )
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  return writeOciLayout(join(scratch.dir, 'layout'), { layers: [layer] })
}
