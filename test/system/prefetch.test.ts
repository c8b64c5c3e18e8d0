import { readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Readable } from 'node:stream'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { repositoryBlocks } from '../../agent/cli/repository-blocks.ts'
import { BlockRepository } from '../../agent/ipfs/repository.ts'
import { isDigest } from '../../snapshotter/oci/digest.ts'
import {
  addPublishedLists,
  type PrefetchList,
  prefetchListsOf,
} from '../../snapshotter/optimize.ts'
import { type Ended, ended as endOf, runIpdr, startIpdr } from '../agent/cli/support/run-ipdr.ts'
import { freePort } from '../support/agent.ts'
import { debianPath } from '../support/debian-programs.ts'
import { busyboxFiles } from '../support/images/busybox-files.ts'
import { type OciLayout, packLayer, writeOciLayout } from '../support/images/oci-layout.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { makeTar, type TarPart } from '../support/make-tar.ts'
import { randomContent } from '../support/random-tree-tar.ts'
import { seeded } from '../support/seeded.ts'

// Prefetch lists from the start that makes one to the start that is spared its waits, as nodes and publishers have them.

const { signal } = new AbortController()

const BUSYBOX: readonly TarPart[] = [...busyboxFiles('cat', 'echo', 'httpd', 'sh', 'sleep')]

/** What the container does in every test: it reads two files of five, the later one first. */
const COMMAND = ['sh', '-c', 'cat /d/4 /d/1 >/dev/null; echo started']
const READ = ['/d/4', '/d/1']

const opened = new AsyncDisposableStack()
/** The publisher's own node, on which images are run for their lists. */
let node: LazyNode
let root: string
let optimized: Optimized
let images = 0

type Optimized = {
  readonly root: string
  readonly manifest: string
  readonly ranges: number
  readonly files: number
  readonly bytes: number
  readonly imageBytes: number
  readonly endedBy: string
  readonly fetchedBlocks: number
}

beforeAll(async () => {
  node = opened.use(await LazyNode.start('prefetch'))
  root = await node.publisher.push(await image(FILES))
  const ended = await optimize(root, ['--', ...COMMAND])
  if (ended.exitCode !== 0) throw new Error(ended.stderr)
  optimized = JSON.parse(ended.stdout) as Optimized
}, 180_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

test('ipdr optimize runs the image and lists what its start read, in order', async () => {
  expect(optimized).toMatchObject({ endedBy: 'exit', fetchedBlocks: 0 })
  expect(optimized.root).not.toBe(root)
  const { ranges } = await listOf(optimized.root)
  const paths = [...new Set(ranges.map(({ path }) => `/${path}`))]
  expect(paths.filter((path) => path.startsWith('/d/'))).toEqual(READ)
  expect(paths).toContain('/bin/busybox')
  expect(optimized.files).toBe(paths.length)
  expect(optimized.bytes).toBeGreaterThan(400_000)
  expect(optimized.bytes).toBeLessThan(optimized.imageBytes - 500_000)
  expect(await node.containerd.ctr(['-n', 'k8s.io', 'containers', 'ls', '-q'])).not.toContain(
    'ipdr',
  )
  expect(await node.cri.imageStatus(`ipdr.internal/${root}`)).toBeUndefined()
})

test('an empty node fetches what the list names before the container reads it', async () => {
  await using empty = await LazyNode.start('prefetch-empty', { publisher: node.publisher })
  expect(await pullAndStart(empty, optimized.root)).toEqual([])
  expect(await empty.metric('ipdr_read_wait_seconds_count')).toBe(0)
  expect(await empty.metric('ipdr_prefetched_bytes_total')).toBeGreaterThanOrEqual(optimized.bytes)
  const used = await empty.metric('ipdr_prefetched_used_bytes_total')
  expect(used).toBeGreaterThan(optimized.bytes / 2)
}, 120_000)

test('without a list the same container waits for each of them', async () => {
  await using empty = await LazyNode.start('prefetch-none', { publisher: node.publisher })
  await empty.cri.pullImage(`ipdr.internal/${root}`)
  expect(await start(empty, root)).toEqual(expect.arrayContaining(READ))
}, 120_000)

test('the list of the old image serves the one that was built anew, where files are unchanged', async () => {
  const changed = FILES.map((file, index) => (index === 1 ? fileOf(1, 250_000) : file))
  const layout = await image([fileOf(9), ...changed])
  const words = ['push', `oci:${layout.dir}:${layout.tag}`, '--optimize', optimized.root]
  const ended = await runIpdr([...words, ...repositoryWords(), '--output', 'json'])
  expect(ended).toMatchObject({ exitCode: 0 })
  const rebuilt = JSON.parse(ended.stdout) as { root: string; prefetchLists: { dropped: number }[] }
  expect(rebuilt.prefetchLists[0]?.dropped).toBeGreaterThan(0)
  await using empty = await LazyNode.start('prefetch-rebuilt', { publisher: node.publisher })
  expect(await pullAndStart(empty, rebuilt.root)).toEqual(['/d/1'])
}, 120_000)

test('a list that names bytes outside of the image does no harm', async () => {
  const honest = await listOf(optimized.root)
  const lie: PrefetchList = {
    ...honest,
    ranges: honest.ranges.map((range) => ({ ...range, layerOffset: 2 ** 40 })),
  }
  await using repository = await BlockRepository.open(repositoryDir())
  const parts = { blocks: repositoryBlocks(repository), sink: repository, signal }
  const { manifest } = optimized
  if (!isDigest(manifest)) throw new Error(`'${manifest}' is no digest`)
  const lying = await addPublishedLists(CID.parse(root), new Map([[manifest, lie]]), parts)
  await using empty = await LazyNode.start('prefetch-lie', { publisher: node.publisher })
  await empty.cri.pullImage(`ipdr.internal/${lying.toString()}`)
  expect(await start(empty, lying.toString())).toEqual(expect.arrayContaining(READ))
  const said = empty.agent.lines.filter(({ msg }) => msg?.includes('prefetch list'))
  expect(said).toHaveLength(1)
  expect(said[0]?.msg).toMatch(/is not used: prefetch list: ".*" has the range 1099511627776/)
}, 120_000)

test('a node that is given no list learns one, and uses it when the image has gone and comes back', async () => {
  const own = await node.publisher.push(await image(FILES.toReversed()))
  await using empty = await LazyNode.start('prefetch-learn', { publisher: node.publisher })
  const learned = empty.agent.logged('learned what a start')
  await empty.cri.pullImage(`ipdr.internal/${own}`)
  expect(await start(empty, own)).toEqual(expect.arrayContaining(READ))
  await learned
  await empty.cri.removeImage(`ipdr.internal/${own}`)
  using admin = empty.agent.admin()
  await vi.waitFor(async () => {
    await admin.calls.CollectGarbage({ targetBytes: 0 }, { signal })
    expect((await admin.calls.ListLayers({}, { signal })).layers).toEqual([])
  }, 30_000)
  const before = (await admin.calls.WaitedFor({ subject: '' }, { signal })).reads.length
  expect(await pullAndStart(empty, own, before)).toEqual([])
}, 120_000)

test('a node that is told to neither uses the list of an image, nor learns one where another has learned it since', async () => {
  const prefetch = { replay: false, learn: false }
  await using plain = await LazyNode.start('prefetch-off', {
    publisher: node.publisher,
    prefetch,
  })
  await plain.cri.pullImage(`ipdr.internal/${optimized.root}`)
  expect(await start(plain, optimized.root)).toEqual(expect.arrayContaining(READ))
  expect(await plain.metric('ipdr_prefetched_bytes_total')).toBe(0)
  await using other = await LazyNode.start('prefetch-on', { publisher: node.publisher })
  const learned = other.agent.logged('learned what a start')
  await pullAndStart(other, optimized.root)
  await learned
  // Where it keeps them, beside lists that were published.
  const listsOf = ({ agent }: LazyNode): string[] =>
    readdirSync(join(agent.root, 'prefetch')).filter((name) => name.includes('learned'))
  expect(listsOf(other)).toHaveLength(1)
  expect(listsOf(plain)).toEqual([])
}, 120_000)

test('a server is recorded until it says that it is ready, or for as long as it may run', async () => {
  const server = ['--', 'sh', '-c', 'cat /d/1 >/dev/null; echo now listening; sleep 1000']
  const ready = await optimize(root, ['--ready', 'now listening', ...server])
  expect(ready).toMatchObject({ exitCode: 0 })
  expect(JSON.parse(ready.stdout)).toMatchObject({ endedBy: 'ready' })
  const stopped = await optimize(root, ['--timeout', '3', ...server])
  expect(stopped).toMatchObject({ exitCode: 0 })
  expect(JSON.parse(stopped.stdout)).toMatchObject({ endedBy: 'timeout' })
  const tasks = await node.containerd.ctr(['-n', 'k8s.io', 'tasks', 'ls', '-q'])
  expect(tasks).not.toContain('ipdr-optimize')
}, 120_000)

test('a server is recorded until it has answered, and what it read for that is in the list', async () => {
  const port = await freePort()
  const url = `http://127.0.0.1:${port}/d/2`
  const server = ['--', 'httpd', '-f', '-p', `127.0.0.1:${port}`, '-h', '/']
  const ended = await optimize(root, ['--ready', url, ...server])
  expect(ended).toMatchObject({ exitCode: 0 })
  const answered = JSON.parse(ended.stdout) as Optimized
  expect(answered.endedBy).toBe('ready')
  const { ranges } = await listOf(answered.root)
  const read = new Set(ranges.map(({ path }) => path))
  expect([...read].filter((path) => path.startsWith('d/'))).toEqual(['d/2'])
  const silent = await optimize(root, ['--ready', `${url}/none`, '--timeout', '2', ...server])
  expect(silent).toMatchObject({ exitCode: 75, stdout: '' })
  expect(silent.stderr).toContain(`did not answer at ${url}/none within 2 s`)
  expect(silent.stderr).toContain('--run-flag=--net-host')
}, 120_000)

test('a command that fails or is never ready makes no list, and says why', async () => {
  const failed = await optimize(root, ['--', 'sh', '-c', 'exit 7'])
  expect(failed).toMatchObject({ exitCode: 1, stdout: '' })
  expect(failed.stderr).toContain('the command ended with exit code 7')
  const silent = await optimize(root, ['--ready', 'hello', '--timeout', '2', '--', 'sleep', '1000'])
  expect(silent).toMatchObject({ exitCode: 75, stdout: '' })
  expect(silent.stderr).toContain("did not say 'hello' within 2 s")
}, 120_000)

test('Ctrl-C stops the container, and leaves neither it nor the image nor a list', async () => {
  const before = await repositoryRoots()
  const said = Promise.withResolvers<void>()
  const child = startOptimize(root, ['--', 'sh', '-c', 'echo now running; exec sleep 1000'])
  child.stderr.on('data', (text: Buffer) => {
    if (text.includes('now running')) said.resolve()
  })
  const over = endOf(child)
  await said.promise
  child.kill('SIGINT')
  expect(await over).toMatchObject({ exitCode: 130, stdout: '' })
  const tasks = await node.containerd.ctr(['-n', 'k8s.io', 'tasks', 'ls', '-q'])
  expect(tasks).not.toContain('ipdr-optimize')
  expect(await node.cri.imageStatus(`ipdr.internal/${root}`)).toBeUndefined()
  expect(await repositoryRoots()).toEqual(before)
}, 120_000)

test('an image that the repository lacks is fetched into it, so that the new root can be served', async () => {
  const other = join(node.scratch.dir, 'other-repository')
  const words = ['--repository', other, '--gateway', node.publisher.gatewayUrl, '--', ...COMMAND]
  const ended = await optimize(root, words)
  expect(ended).toMatchObject({ exitCode: 0 })
  const { root: copied, fetchedBlocks } = JSON.parse(ended.stdout) as Optimized
  expect(fetchedBlocks).toBeGreaterThan(5)
  const inspected = await runIpdr(['inspect', copied, '--repository', other, '--output', 'json'])
  expect(inspected).toMatchObject({ exitCode: 0 })
  expect(JSON.parse(inspected.stdout)).toMatchObject({
    manifests: [{ prefetch: { kind: 'list' } }],
  })
}, 120_000)

/** Five files that do not compress. */
const FILES: readonly TarPart[] = [0, 1, 2, 3, 4].map((index) => fileOf(index))

function fileOf(index: number, size = 200_000): TarPart {
  return { name: `d/${index}`, content: randomContent(seeded(index + size), size) }
}

async function image(files: readonly TarPart[]): Promise<OciLayout> {
  const dir = join(node.scratch.dir, `image-${images++}`)
  const layers = [BUSYBOX, files].map((parts) =>
    packLayer(Readable.from([makeTar(...parts)]), 'gzip', join(dir, 'layers')),
  )
  const process = { Env: ['PATH=/bin'] }
  return writeOciLayout(join(dir, 'layout'), { layers: await Promise.all(layers), process })
}

function repositoryDir(): string {
  return join(node.scratch.dir, 'repository')
}

function repositoryWords(): string[] {
  return ['--repository', repositoryDir()]
}

async function repositoryRoots(): Promise<string[]> {
  await using repository = await BlockRepository.open(repositoryDir())
  return (await repository.roots()).map(({ cid }) => cid.toString())
}

/** Runs `ipdr optimize` to its end. */
function optimize(image: string, words: readonly string[]): Promise<Ended> {
  return endOf(startOptimize(image, words))
}

/** Starts `ipdr optimize` on the publisher's node, with its containers where the test's end finds them. */
function startOptimize(image: string, words: readonly string[]): ReturnType<typeof startIpdr> {
  const { agent, containerd, scratch } = node
  const places = ['--agent', agent.adminSocket, '--address', containerd.socketPath]
  const flags = [
    '--net-host',
    `--cgroup=${containerd.cgroup}/optimize-${images++}`,
    `--runc-root=${join(scratch.run, 'runc')}`,
    `--fifo-dir=${join(scratch.run, 'fifo')}`,
  ].map((flag) => `--run-flag=${flag}`)
  const repository = words.includes('--repository') ? [] : repositoryWords()
  const PATH = `${dirname(process.execPath)}:${debianPath}`
  return startIpdr(
    ['optimize', image, ...places, ...flags, ...repository, '--output', 'json', ...words],
    { env: { PATH } },
  )
}

async function listOf(image: string): Promise<PrefetchList> {
  await using repository = await BlockRepository.open(repositoryDir())
  const reference = { root: CID.parse(image), selector: 'latest' }
  const lists = await prefetchListsOf(reference, { blocks: repositoryBlocks(repository), signal })
  const [list] = lists.values()
  if (list === undefined) throw new Error(`image ${image} has no list`)
  return list
}

/** Runs the command in a container, and answers which files it had to wait for; not the first `before` waits. */
async function start(on: LazyNode, image: string, before = 0): Promise<string[]> {
  const pod = await on.cri.runPodSandbox()
  const container = await on.cri.createContainer(pod, `ipdr.internal/${image}`, COMMAND)
  await on.cri.startContainer(container)
  const { exitCode } = await on.cri.whenExited(container, AbortSignal.timeout(60_000))
  expect(exitCode).toBe(0)
  await on.cri.removePodSandbox(pod)
  using admin = on.agent.admin()
  const { reads } = await admin.calls.WaitedFor({ subject: '' }, { signal })
  // What pads a file lies in the next block, and has no path: it is waited for with the file.
  const paths = reads.slice(before).map(({ path }) => path)
  return [...new Set(paths)].filter((path) => path !== '')
}

async function pullAndStart(on: LazyNode, image: string, before = 0): Promise<string[]> {
  const prefetched = on.agent.logged('prefetched ')
  await on.cri.pullImage(`ipdr.internal/${image}`)
  await prefetched
  return start(on, image, before)
}
