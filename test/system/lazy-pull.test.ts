import { createHash } from 'node:crypto'
import { cpSync, globSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { sniffCompression } from '../../snapshotter/toc/sniff-compression.ts'
import {
  chunkedLayer,
  estargzLayer,
  type TestLayer,
} from '../snapshotter/layers/published-image.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { buildDebianImage } from '../support/images/debian-image.ts'
import { PYTHON } from '../support/images/demo-image.ts'
import {
  type Compression,
  type OciLayout,
  packLayer,
  writeOciLayout,
} from '../support/images/oci-layout.ts'
import { LazyNode, onceServed } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { type OciRegistry, startOciRegistry } from '../support/oci-registry.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { Scratch } from '../support/scratch.ts'
import { seeded } from '../support/seeded.ts'

// An image on IPFS from its name to a running container, as a kubelet has it from Debian's containerd.

const MiB = 1024 ** 2

const opened = new AsyncDisposableStack()
let scratch: Scratch
let registry: OciRegistry
let node: LazyNode
let python: OciLayout
/** Root CID of what `ipdr push` made of it. */
let pythonRoot: string

beforeAll(async () => {
  scratch = opened.use(Scratch.open('pull-images'))
  registry = opened.use(await startOciRegistry(scratch))
  const hosts = { 'registry.test': `http://${registry.host}` }
  node = opened.use(await LazyNode.start('pull', { hosts }))
  python = await buildDebianImage({
    name: 'python',
    root: { variant: 'minbase' },
    steps: [PYTHON],
  })
  pythonRoot = await node.publisher.push(python)
}, 300_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

test('a pod runs from a CID, and containerd downloads not one byte of a layer', async () => {
  const { cri } = node
  const image = `ipdr.internal/${pythonRoot}`
  const layerBytes = sum(python.layers.map(({ size }) => size))
  const before = new Set(await node.downloadedBlobs())

  await cri.pullImage(image)
  const { manifest, digest } = await manifestOf(pythonRoot)
  const downloaded = (await node.downloadedBlobs()).filter((blob) => !before.has(blob))
  expect(downloaded.toSorted()).toEqual([digest, manifest.config.digest].toSorted())
  expect(await sentBytes('blob')).toBe(manifest.config.size)
  expect(await node.fetchedBytes()).toBeLessThan(layerBytes / 10)
  expect((await cri.imageStatus(image))?.id).toBe(manifest.config.digest)

  const pod = await cri.runPodSandbox()
  const sleeper = await cri.createContainer(pod, image, ['sleep', 'infinity'])
  await cri.startContainer(sleeper)
  const result = await cri.execSync(sleeper, [
    'python3',
    '-c',
    'import sys; print(6 * 7); print(sys.prefix, file=sys.stderr); sys.exit(3)',
  ])
  expect(result).toEqual({ stdout: '42\n', stderr: '/usr\n', exitCode: 3 })
  const speaker = await cri.createContainer(pod, image, ['python3', '-c', 'print("spoken")'])
  await cri.startContainer(speaker)
  expect((await cri.whenExited(speaker, AbortSignal.timeout(30_000))).exitCode).toBe(0)
  expect(await cri.logOf(speaker)).toBe('spoken\n')
  expect(await sentBytes('blob')).toBe(manifest.config.size)
  expect(await node.fetchedBytes()).toBeLessThan(layerBytes / 2)

  await cri.removeContainer(speaker)
  await cri.removePodSandbox(pod)
  await cri.removeImage(image)
  expect(await cri.imageStatus(image)).toBeUndefined()
  expect(node.layerMounts).toEqual([])
  const [disk] = await cri.imageFsInfo()
  expect(disk?.fsId?.mountpoint).toContain(node.containerd.root)
}, 120_000)

test('one image is had by its CID, tag, digest, path and CIDv0', async () => {
  const root = await node.publisher.push(await image([BUSYBOX, [text('name', 'by any')]]), 'v1')
  const { digest } = await manifestOf(root)
  const names = [
    `ipdr.internal/${root}`,
    `ipdr.internal/${root}:v1`,
    `ipdr.internal/${root}@${digest}`,
    `ipdr.internal/ipfs/${root}:v1`,
    `ipdr.internal/app:${CID.parse(root).toV0().toString()}`,
  ]
  const ids = new Set<string>()
  for (const name of names) ids.add(await node.cri.pullImage(name))
  expect(ids.size).toBe(1)
  for (const name of names) expect(await output(name, ['cat', '/name'])).toBe('by any\n')
}, 120_000)

test('a second pull is sent nothing', async () => {
  const name = await pushed(await image([BUSYBOX, [text('twice', '')]]))
  const id = await node.cri.pullImage(name)
  const before = { manifest: await sentBytes('manifest'), blob: await sentBytes('blob') }
  expect(await node.cri.pullImage(name)).toBe(id)
  expect({ manifest: await sentBytes('manifest'), blob: await sentBytes('blob') }).toEqual(before)
}, 60_000)

test('images share the mounts of the layers that they have in common', async () => {
  const shared = [[...BUSYBOX, text('below', 'of both')], [text('shared', 'by both')]]
  const names = [
    await pushed(await image([...shared, [text('own', 'first')]])),
    await pushed(await image([...shared, [text('own', 'second')]])),
  ]
  for (const name of names) await node.cri.pullImage(name)
  const before = node.layerMounts.length
  const containers = []
  for (const name of names) containers.push(await node.startContainer(name, SLEEP))
  const words = []
  for (const { id } of containers) {
    words.push((await node.cri.execSync(id, ['cat', '/shared', '/own'])).stdout)
  }
  expect(words).toEqual(['by both\nfirst\n', 'by both\nsecond\n'])
  expect(node.layerMounts).toHaveLength(before + 4)
  for (const container of containers) await container[Symbol.asyncDispose]()
}, 60_000)

test('an image from an ordinary registry unpacks into the same snapshotter and runs', async () => {
  const layout = await image([[...BUSYBOX, text('origin', 'a registry')], [text('second', '')]])
  const name = (await registry.push(layout, 'ordinary')).replace(registry.host, 'registry.test')
  const [mounts, before] = [node.layerMounts.length, new Set(await node.downloadedBlobs())]
  await node.cri.pullImage(name)
  expect(await output(name, ['cat', '/origin'])).toBe('a registry\n')
  expect(node.layerMounts).toHaveLength(mounts)
  const downloaded = (await node.downloadedBlobs()).filter((blob) => !before.has(blob))
  expect(downloaded).toEqual(expect.arrayContaining(layout.layers.map(({ digest }) => digest)))
}, 60_000)

test('an ordinary image stands on a layer that an image from IPFS has brought', async () => {
  const base = [...BUSYBOX, text('base', 'from IPFS')]
  await node.cri.pullImage(await pushed(await image([base])))
  const layout = await image([base, [text('top', 'from a registry')]])
  const name = (await registry.push(layout, 'mixed')).replace(registry.host, 'registry.test')
  await node.cri.pullImage(name)
  expect(await output(name, ['cat', '/base', '/top'])).toBe('from IPFS\nfrom a registry\n')
}, 60_000)

test('of an index of two platforms the one of this machine is run', async () => {
  const [ours, other] = [await image([BUSYBOX, [text('built-for', 'us')]]), await image([[]])]
  const name = await pushed(withOtherPlatform(ours, other))
  await node.cri.pullImage(name)
  expect(await output(name, ['cat', '/built-for'])).toBe('us\n')
}, 60_000)

test('an image of 32 layers is one mount, in which upper layers hide and delete', async () => {
  const numbered = Array.from({ length: 30 }, (_, index) => [
    text(`layer-${index}`, `${index}`),
    text('last', `${index}`),
  ])
  const deletion = [text('.wh.layer-7', '')]
  const name = await pushed(await image([BUSYBOX, ...numbered, deletion]))
  await node.cri.pullImage(name)
  const before = node.layerMounts.length
  await using container = await node.startContainer(name, SLEEP)
  expect(node.layerMounts).toHaveLength(before + 1)
  const shown = await node.cri.execSync(container.id, [
    'sh',
    '-c',
    'ls -d /layer-* | wc -l; cat /last',
  ])
  expect(shown.stdout).toBe('29\n29\n')
}, 120_000)

test('a gzip layer without a table of contents is read once, and not again after its image was removed', async () => {
  const content = randomContent(seeded(1), 6 * MiB)
  const layout = await image([[...BUSYBOX, { name: 'noise', content }]], 'gzip')
  const name = `ipdr.internal/${await node.publisher.importAsIs(layout)}`
  const blobBytes = sum(layout.layers.map(({ size }) => size))
  const [start, blobs] = [await node.fetchedBytes(), await sentBytes('blob')]

  await node.cri.pullImage(name)
  expect(await output(name, ['sha256sum', '/noise'])).toBe(`${sha256(content)}  /noise\n`)
  const once = await node.fetchedBytes()
  expect(once - start).toBeGreaterThanOrEqual(blobBytes)
  // Some leaves more: the first and the last were looked at before, to see what the layer is.
  expect(once - start).toBeLessThan(blobBytes + MiB)
  expect((await sentBytes('blob')) - blobs).toBeLessThan(MiB)

  await node.cri.removeImage(name)
  await node.cri.pullImage(name)
  expect(await output(name, ['sha256sum', '/noise'])).toBe(`${sha256(content)}  /noise\n`)
  expect((await node.fetchedBytes()) - once).toBeLessThan(blobBytes / 100)
}, 120_000)

test('a plain tar is lazy: what nobody reads is not fetched', async () => {
  const content = randomContent(seeded(2), 24 * MiB)
  const parts = [text('small', 'read'), { name: 'large', content }, text('after', 'it')]
  const layout = await image([[...BUSYBOX, ...parts]], 'none')
  const name = `ipdr.internal/${await node.publisher.importAsIs(layout)}`
  const start = await node.fetchedBytes()
  await node.cri.pullImage(name)
  expect(await output(name, ['cat', '/small', '/after'])).toBe('read\nit\n')
  expect((await node.fetchedBytes()) - start).toBeLessThan(content.length / 2)
  expect(await output(name, ['sha256sum', '/large'])).toBe(`${sha256(content)}  /large\n`)
  expect((await node.fetchedBytes()) - start).toBeGreaterThan(content.length)
}, 60_000)

test('a zstd layer of another publisher runs', async () => {
  const content = randomContent(seeded(3), 4 * MiB)
  const layout = await image([[...BUSYBOX, { name: 'noise', content }]], 'zstd')
  const name = `ipdr.internal/${await node.publisher.importAsIs(layout)}`
  await node.cri.pullImage(name)
  expect(await output(name, ['sha256sum', '/noise'])).toBe(`${sha256(content)}  /noise\n`)
}, 60_000)

test.each([
  ['zstd:chunked', chunkedLayer],
  ['eStargz', async (tar: Buffer) => estargzLayer(tar)],
] as const)(
  'a pod runs from a layer that another tool wrote as %s: containerd downloads nothing of it, and we what is read',
  async (_, layerOf) => {
    const content = randomContent(seeded(5), 24 * MiB)
    const parts = [text('small', 'read'), { name: 'large', content }, text('after', 'it')]
    const tar = makeTar(...BUSYBOX, ...parts)
    const layout = storedImage(await layerOf(tar))
    const name = `ipdr.internal/${await node.publisher.importAsIs(layout)}`
    const [start, before] = [await node.fetchedBytes(), new Set(await node.downloadedBlobs())]
    await node.cri.pullImage(name)
    const downloaded = (await node.downloadedBlobs()).filter((blob) => !before.has(blob))
    expect(downloaded).not.toContain(layout.layers[0]?.digest)
    expect((await node.fetchedBytes()) - start).toBeLessThan(3 * MiB)
    expect(await output(name, ['cat', '/small', '/after'])).toBe('read\nit\n')
    expect((await node.fetchedBytes()) - start).toBeLessThan(content.length / 4)
    expect(await output(name, ['sha256sum', '/large'])).toBe(`${sha256(content)}  /large\n`)
  },
  60_000,
)

test('what a container writes lies in its own upper directory, and goes with it', async () => {
  const name = await pushed(await image([BUSYBOX, [text('file', 'of the image')]]))
  await node.cri.pullImage(name)
  const writing = 'echo written > /new; echo changed > /file; cat /file'
  const written = (): string[] => globSync(join(node.agent.root, 'snapshots/*/fs/{new,file}'))
  {
    await using container = await node.startContainer(name, SLEEP)
    const { stdout } = await node.cri.execSync(container.id, ['sh', '-c', writing])
    expect(stdout).toBe('changed\n')
    const contents = written().map((path) => readFileSync(path, 'utf8'))
    expect(contents.toSorted()).toEqual(['changed\n', 'written\n'])
  }
  await vi.waitFor(() => expect(written()).toEqual([]), 10_000)
  expect(await output(name, ['cat', '/file'])).toBe('of the image\n')
}, 60_000)

test('ctr pulls a whole image from our registry, and runs it', async () => {
  const layout = await image([BUSYBOX, [{ name: 'noise', content: randomContent(seeded(4), MiB) }]])
  const root = await node.publisher.push(layout)
  const before = await sentBytes('blob')
  await node.containerd.pull(`ipdr.internal/${root}:latest`)
  const { manifest } = await manifestOf(root)
  const blobs = [manifest.config, ...manifest.layers]
  expect((await sentBytes('blob')) - before).toBe(sum(blobs.map(({ size }) => size)))
  const said = await node.containerd.run(`ipdr.internal/${root}:latest`, ['echo', 'from ctr'])
  expect(said).toBe('from ctr\n')
}, 60_000)

test('a container reads on while the worker is killed under it, and pulls go on after', async () => {
  const name = `ipdr.internal/${pythonRoot}`
  await node.cri.pullImage(name)
  // Debian knows the MD5 of nearly every file of its packages.
  const check = 'cat /var/lib/dpkg/info/*.md5sums | md5sum --quiet --check && echo intact'
  await using container = await node.startContainer(name, ['sh', '-c', check])
  for (let kill = 0; kill < 3; kill++) {
    await vi.waitFor(async () => expect(await node.fetchedBytes()).toBeGreaterThan(MiB), 30_000)
    await node.agent.killWorker()
    const { state } = await node.cri.containerStatus(container.id)
    expect({ kill, state }).toEqual({ kill, state: 'CONTAINER_RUNNING' })
  }
  const { exitCode } = await node.cri.whenExited(container.id, AbortSignal.timeout(90_000))
  expect(await node.cri.logOf(container.id)).toBe('intact\n')
  expect(exitCode).toBe(0)
  const another = await pushed(await image([BUSYBOX, [text('after', 'the kills')]]))
  await onceServed(() => node.cri.pullImage(another))
  expect(await output(another, ['cat', '/after'])).toBe('the kills\n')
}, 180_000)

const SLEEP = ['sleep', 'infinity']

/** The lowest layer of small images. */
const BUSYBOX: readonly TarPart[] = [
  ...busyboxFiles('cat', 'echo', 'ls', 'rm', 'sh', 'sha256sum', 'sleep', 'wc'),
]

/** A file of one line. */
function text(name: string, line: string): TarPart {
  return { name, content: `${line}\n` }
}

let images = 0

/** An image of these layers, lowest first. */
async function image(
  layers: readonly (readonly TarPart[])[],
  compression: Compression = 'gzip',
): Promise<OciLayout> {
  const dir = join(scratch.dir, `image-${images++}`)
  const packed = layers.map((parts) =>
    packLayer(Readable.from([makeTar(...parts)]), compression, join(dir, 'layers')),
  )
  const process = { Env: ['PATH=/bin'] }
  return writeOciLayout(join(dir, 'layout'), { layers: await Promise.all(packed), process })
}

/** An image of one layer, stored as another tool would. */
function storedImage({ blob, diffId, annotations }: TestLayer): OciLayout {
  const dir = join(scratch.dir, `image-${images++}`)
  mkdirSync(dir)
  const path = join(dir, 'layer')
  writeFileSync(path, blob)
  const layer = {
    path,
    mediaType: `application/vnd.oci.image.layer.v1.tar+${sniffCompression(blob)}`,
    digest: `sha256:${sha256(blob)}`,
    size: blob.length,
    diffId,
    tarSize: blob.length,
    ...(annotations && { annotations }),
  }
  return writeOciLayout(join(dir, 'layout'), {
    layers: [layer],
    process: { Env: ['PATH=/bin'] },
  })
}

/** A layout whose only name leads to an index: of an image that is not for this machine, and then of one that is. */
function withOtherPlatform(ours: OciLayout, other: OciLayout): Pick<OciLayout, 'dir' | 'tag'> {
  const dir = join(scratch.dir, `image-${images++}`)
  mkdirSync(dir)
  for (const layout of [other, ours]) cpSync(layout.dir, dir, { recursive: true })
  const read = (path: string): unknown => JSON.parse(readFileSync(path, 'utf8'))
  const blobPath = (digest: string): string => join(dir, 'blobs/sha256', digest.slice(7))
  const add = (value: unknown): { digest: string; size: number } => {
    const bytes = Buffer.from(JSON.stringify(value))
    const digest = `sha256:${sha256(bytes)}`
    writeFileSync(blobPath(digest), bytes)
    return { digest, size: bytes.length }
  }
  const foreign = process.arch === 's390x' ? 'amd64' : 's390x'
  const manifest = read(blobPath(other.manifestDigest)) as Manifest
  const config = read(blobPath(manifest.config.digest)) as object
  const foreignConfig = { ...manifest.config, ...add({ ...config, architecture: foreign }) }
  const foreignManifest = add({ ...manifest, config: foreignConfig })
  const [entry] = (read(join(ours.dir, 'index.json')) as { manifests: [IndexEntry] }).manifests
  const { annotations, ...own } = entry
  const platform = { os: 'linux', architecture: foreign }
  const index = { schemaVersion: 2, manifests: [{ ...own, ...foreignManifest, platform }, own] }
  const mediaType = 'application/vnd.oci.image.index.v1+json'
  const named = { mediaType, ...add({ ...index, mediaType }), annotations }
  writeFileSync(join(dir, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [named] }))
  return { dir, tag: ours.tag }
}

type Blob = { readonly digest: string; readonly size: number }
type Manifest = { readonly config: Blob; readonly layers: readonly Blob[] }
type IndexEntry = Blob & { readonly annotations: object; readonly platform: object }

/** Publishes an image by `ipdr push`, and names it for containerd. */
async function pushed(layout: Pick<OciLayout, 'dir' | 'tag'>): Promise<string> {
  return `ipdr.internal/${await node.publisher.push(layout)}`
}

/** The manifest that the registry answers for a root. */
async function manifestOf(root: string): Promise<{ manifest: Manifest; digest: string }> {
  const answer = await fetch(`${node.agent.registryUrl}/v2/${root}/manifests/latest`)
  const digest = answer.headers.get('docker-content-digest') ?? ''
  return { manifest: (await answer.json()) as Manifest, digest }
}

/** What a container of the image prints until it ends, well. */
async function output(name: string, command: readonly string[]): Promise<string> {
  await using container = await node.startContainer(name, command)
  const { exitCode } = await node.cri.whenExited(container.id, AbortSignal.timeout(60_000))
  const log = await node.cri.logOf(container.id)
  // Both, so that a failure shows what the container said.
  expect({ exitCode, log }).toEqual({ exitCode: 0, log })
  return log
}

async function sentBytes(kind: 'manifest' | 'blob'): Promise<number> {
  return await node.metric(`ipdr_registry_sent_bytes_total{kind="${kind}"}`)
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
