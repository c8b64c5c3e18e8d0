import { createHash, hash } from 'node:crypto'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { Containerd } from '../support/containerd.ts'
import { Cri } from '../support/cri.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar } from '../support/make-tar.ts'
import { type OciRegistry, startOciRegistry } from '../support/oci-registry.ts'
import { runCommand } from '../support/run-command.ts'
import { Scratch } from '../support/scratch.ts'
import { StargzSnapshotter, writeByStargz } from '../support/stargz-snapshotter.ts'

// Goal: the snapshotter that invented lazy pulling reads what `ipdr push` writes, without downloading it. Method: an image goes from
// the agent's registry into docker-registry by skopeo; a containerd with stargz-snapshotter runs it; the registry counts what it sent.

const FILES = 300

const opened = new AsyncDisposableStack()
let scratch: Scratch
let registry: OciRegistry
let tar: Buffer
let image = ''
let layerBytes = 0

/** Does not compress, so that the image is of some size; the same for the same number. */
function content(number: number): Buffer {
  return createHash('shake256', { outputLength: 100_000 }).update(`${number}`).digest()
}

beforeAll(async () => {
  scratch = opened.use(Scratch.open('stargz'))
  registry = opened.use(await startOciRegistry(scratch))
  const node = opened.use(await LazyNode.start('stargz-source'))
  tar = makeTar(
    ...busyboxFiles('cat', 'ls', 'sleep', 'sha256sum', 'sh', 'stat'),
    { name: 'owned', mode: 0o640, uid: 12, gid: 34, mtime: 1_700_000_000, content: 'mine\n' },
    { name: 'data/', typeflag: '5', mode: 0o755 },
    ...Array.from({ length: FILES }, (_, index) => ({
      name: `data/${index}`,
      content: content(index),
    })),
    { name: 'long', content: Buffer.concat(Array.from({ length: 50 }, (_, at) => content(-at))) },
  )
  const layer = await packLayer(Readable.from([tar]), 'gzip', join(scratch.dir, 'layers'))
  const layout = writeOciLayout(join(scratch.dir, 'layout'), {
    layers: [layer],
    process: { Env: ['PATH=/bin'] },
  })
  const root = await node.publisher.push(layout)
  const source = `${new URL(node.agent.registryUrl).host}/${root}`
  image = `${registry.host}/pushed:latest`
  layerBytes = layer.size
  await runCommand('skopeo', [
    'copy',
    '--insecure-policy',
    '--preserve-digests',
    '--src-tls-verify=false',
    '--dest-tls-verify=false',
    `docker://${source}`,
    `docker://${image}`,
  ])
}, 300_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

/** SHA-256 of what `cat /data/* /long` prints. */
function sumOfAll(): string {
  const names = Array.from({ length: FILES }, (_, index) => `${index}`).toSorted()
  const long = Array.from({ length: 50 }, (_, at) => content(-at))
  return hash('sha256', Buffer.concat([...names.map((name) => content(Number(name))), ...long]))
}

/** A containerd of its own with stargz-snapshotter. */
async function stargzNode(
  opened: AsyncDisposableStack,
  options: Parameters<typeof StargzSnapshotter.start>[1],
): Promise<{ containerd: Containerd; cri: Cri }> {
  const inner = opened.use(Scratch.open('stargz-node'))
  const snapshotter = opened.use(await StargzSnapshotter.start(inner, options))
  const containerd = opened.use(await Containerd.start({ scratch: inner, snapshotter }))
  return { containerd, cri: opened.use(await Cri.connect(containerd)) }
}

/** Bytes of blobs that the registry has sent to anybody. */
function blobBytesSent(): number {
  return registry.answers
    .filter(({ method, uri }) => method === 'GET' && uri.includes('/blobs/'))
    .reduce((sum, { bytes }) => sum + bytes, 0)
}

test('a container starts and reads files of every kind before a tenth of its layer is here, and all of it is what was pushed', async () => {
  await using opened = new AsyncDisposableStack()
  const { cri } = await stargzNode(opened, { disablesVerification: true })
  const before = blobBytesSent()
  await cri.pullImage(image)
  const pod = await cri.runPodSandbox()
  opened.defer(() => cri.removePodSandbox(pod))
  const id = await cri.createContainer(pod, image, ['sleep', 'infinity'])
  await cri.startContainer(id)
  const one = await cri.execSync(id, ['sh', '-c', 'cat /owned; sha256sum </data/123'])
  expect(one.stdout).toBe(`mine\n${hash('sha256', content(123))}  -\n`)
  const owned = await cri.execSync(id, ['stat', '-c', '%a %u %g %Y', '/owned'])
  expect(owned.stdout).toBe('640 12 34 1700000000\n')
  expect(blobBytesSent() - before).toBeLessThan(layerBytes / 10)
  const all = await cri.execSync(id, ['sh', '-c', 'cat /data/* /long | sha256sum'])
  expect(all.stdout).toBe(`${sumOfAll()}  -\n`)
}, 180_000)

test('with verification, which wants its own annotation, it leaves the layer to containerd, and the container runs as well', async () => {
  await using opened = new AsyncDisposableStack()
  const { containerd, cri } = await stargzNode(opened, { disablesVerification: false })
  await cri.pullImage(image)
  const listed = await containerd.ctr(['-n', 'k8s.io', 'content', 'ls', '-q'])
  expect(listed.trim().split('\n').length).toBeGreaterThan(2)
  const pod = await cri.runPodSandbox()
  opened.defer(() => cri.removePodSandbox(pod))
  const id = await cri.createContainer(pod, image, ['cat', '/owned'])
  await cri.startContainer(id)
  await cri.whenExited(id, AbortSignal.timeout(30_000))
  expect(await cri.logOf(id)).toContain('mine')
}, 180_000)

test("what stargz-snapshotter's own writer made, prioritised files and landmark included, runs lazily on our agent, and is whole", async () => {
  await using node = await LazyNode.start('stargz-written')
  const dir = join(node.scratch.dir, 'estargz')
  const layer = await writeByStargz(tar, dir, ['bin/busybox', 'data/7'])
  const process = { Env: ['PATH=/bin'] }
  const layout = writeOciLayout(join(dir, 'layout'), { layers: [layer], process })
  const written = await registry.push(layout, 'estargz')
  const before = blobBytesSent()
  await node.cri.pullImage(written)
  await using container = await node.startContainer(written, ['sleep', 'infinity'])
  const one = await node.cri.execSync(container.id, ['sh', '-c', 'cat /owned; ls -a /'])
  expect(one.stdout).toBe('mine\n.\n..\nbin\ndata\ndev\netc\nlong\nowned\nproc\nsys\n')
  expect(blobBytesSent() - before).toBeLessThan(layer.size / 10)
  const all = await node.cri.execSync(container.id, ['sh', '-c', 'cat /data/* /long | sha256sum'])
  expect(all.stdout).toBe(`${sumOfAll()}  -\n`)
}, 180_000)
