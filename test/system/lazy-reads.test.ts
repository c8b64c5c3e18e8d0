import { readFileSync, statSync } from 'node:fs'
import { type FileHandle, mkdir, open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { mountFileSystem } from '../../snapshotter/kernel/mount-file-system.ts'
import { listMounts } from '../../snapshotter/kernel/mountinfo.ts'
import { buildDebianImage } from '../support/images/debian-image.ts'
import { PYTHON } from '../support/images/demo-image.ts'
import { LazyNode } from '../support/lazy-node.ts'
import { runCommand } from '../support/run-command.ts'
import { seeded } from '../support/seeded.ts'

const MiB = 1024 ** 2

/** The smallest there may be, and a third of what the image unpacks to: most of what was read is evicted again. */
const STORE_BYTES_MAX = 64 * MiB

/** Reads in the kernel at once. Fewer than the 4 threads that Node reads files with: a blocked one must not stop the test. */
const READERS = 3

const opened = new AsyncDisposableStack()
let node: LazyNode
/** The image as tar(1) unpacks it, and as we mount it. */
let plain: string
let mounted: string
let files: readonly PlainFile[]
/** Compressed bytes of all layers. */
let imageBytes: number

type PlainFile = { readonly path: string; readonly size: number }
type FileRange = { readonly path: string; readonly start: number; readonly length: number }

beforeAll(async () => {
  node = opened.use(await LazyNode.start('reads', { storeBytesMax: STORE_BYTES_MAX }))
  const layout = await buildDebianImage({
    name: 'python',
    root: { variant: 'minbase' },
    steps: [PYTHON],
  })
  imageBytes = layout.layers.reduce((sum, { size }) => sum + size, 0)
  plain = join(node.scratch.dir, 'plain')
  await mkdir(plain)
  for (const { path } of layout.layers) {
    await runCommand('tar', ['--extract', '--gzip', '--file', path, '-C', plain])
  }
  const root = await node.publisher.push(layout)
  await node.cri.pullImage(`ipdr.internal/${root}`)
  mounted = opened.use(await node.mountImage(`ipdr.internal/${root}`)).path
  files = await regularFiles(mounted)
}, 300_000)

afterAll(async () => await opened.disposeAsync(), 60_000)

test('10,000 ranges read through evictions and ten kills of the worker are those of the plain files', async () => {
  const random = seeded(2026)
  let fetchedBytes = 0
  for (let round = 0; round < 10; round++) {
    await dropPageCache()
    const ranges = Array.from({ length: 1_000 }, () => randomRange(random))
    // Reads go on while the worker dies and the next one starts.
    const reading = differencesOf(ranges)
    await vi.waitFor(async () => expect(await node.fetchedBytes()).toBeGreaterThan(0), 30_000)
    fetchedBytes += await node.fetchedBytes()
    await node.agent.killWorker()
    // Once, halfway, all of the agent; its keeper holds the mounts. It also ends the pause that grows with each kill.
    if (round === 4) await restartAgent()
    expect(await reading).toEqual([])
    fetchedBytes += await node.fetchedBytes()
  }
  // What is fetched more than once was evicted in between.
  expect(fetchedBytes).toBeGreaterThan(imageBytes)
  expect(await node.metric('ipdr_store_bytes')).toBeLessThanOrEqual(STORE_BYTES_MAX * 1.1)
}, 240_000)

test('a read that finds no worker blocks, and succeeds once there is one', async () => {
  await dropPageCache()
  const waitingRequests = await requestCounter()
  const { pid, workerPid } = node.agent
  const ready = node.agent.logged('data worker is ready')
  const random = seeded(7)
  // Frozen, so that the next worker is not started before we have seen that the reads wait.
  process.kill(pid, 'SIGSTOP')
  process.kill(workerPid, 'SIGKILL')
  let answered = false
  const ranges = Array.from({ length: 100 }, () => randomRange(random))
  const reading = differencesOf(ranges).finally(() => {
    answered = true
  })
  try {
    await vi.waitFor(() => expect(waitingRequests()).toBeGreaterThanOrEqual(READERS), 10_000)
    expect(answered).toBe(false)
  } finally {
    process.kill(pid, 'SIGCONT')
  }
  await ready
  expect(await reading).toEqual([])
}, 60_000)

async function restartAgent(): Promise<void> {
  await node.agent.stop()
  await node.agent.start()
}

/** Which of the ranges are not the same in the mounted file as in the plain one; none may fail. */
async function differencesOf(ranges: readonly FileRange[]): Promise<FileRange[]> {
  const different: FileRange[] = []
  const left = ranges.values()
  const readNext = async (): Promise<void> => {
    for (const range of left) {
      const [actual, expected] = [await bytesOf(mounted, range), await bytesOf(plain, range)]
      if (!actual.equals(expected)) different.push(range)
    }
  }
  await Promise.all(Array.from({ length: READERS }, readNext))
  return different
}

async function bytesOf(root: string, { path, start, length }: FileRange): Promise<Buffer> {
  await using file: FileHandle = await open(join(root, path))
  const { bytesRead, buffer } = await file.read(Buffer.alloc(length), 0, length, start)
  return buffer.subarray(0, bytesRead)
}

/** Up to 64 KiB from anywhere in the image's content: large files are read more often. */
function randomRange(random: (max: number) => number): FileRange {
  const total = files.reduce((sum, { size }) => sum + size, 0)
  let at = random(total)
  for (const { path, size } of files) {
    if (at < size) return { path, start: at, length: 1 + random(64 * 1024) }
    at -= size
  }
  throw new RangeError('no file')
}

async function regularFiles(root: string): Promise<PlainFile[]> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true })
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .map((path) => ({ path: path.slice(root.length), size: statSync(path).size }))
    .toSorted((a, b) => (a.path < b.path ? -1 : 1))
}

/** Makes the kernel forget the mounted files, so that reads reach the agent again. */
async function dropPageCache(): Promise<void> {
  const script = `
import os, sys
for path in sys.stdin.read().splitlines():
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
`
  const input = files.map(({ path }) => join(mounted, path)).join('\n')
  await runCommand('/usr/bin/python3', ['-c', script], { input })
}

/** Tells how many requests of the kernel the agent has not answered. */
async function requestCounter(): Promise<() => number> {
  const control = join(node.scratch.run, 'requests')
  await mkdir(control)
  await mountFileSystem({ type: 'fusectl', target: control, options: [], readOnly: true })
  const fuse = listMounts(node.agent.runDir).find(({ type }) => type.startsWith('fuse'))
  const path = join(control, fuse?.device.split(':')[1] ?? '', 'waiting')
  return () => Number(readFileSync(path, 'utf8'))
}
