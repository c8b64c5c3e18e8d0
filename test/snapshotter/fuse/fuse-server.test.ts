import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, open, readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { BlobStore } from '../../../snapshotter/blobs/blob-store.ts'
import { DEFAULT_FETCH_LIMITS, FetchQueue } from '../../../snapshotter/blobs/fetch-queue.ts'
import type { UnitSource } from '../../../snapshotter/blobs/layer-source.ts'
import type { Fetched, WaitEvent } from '../../../snapshotter/blobs/lazy-layer.ts'
import { BlockError } from '../../../snapshotter/errors.ts'
import { FuseServer } from '../../../snapshotter/fuse/fuse-server.ts'
import { MNT_DETACH, mount as mountFileSystem, umount } from '../../../snapshotter/kernel/libc.ts'
import { FuseMount, listeningLog } from '../../support/fuse-mount.ts'
import { seeded } from '../../support/seeded.ts'
import { type RandomLayer, randomLayer, unitBytes } from '../blobs/random-layer.ts'

const INODE = 1_001

/** A mounted file system served by this process, and all that is behind it. */
async function serve(
  layers: readonly { name: string; layer: RandomLayer; source?: UnitSource }[],
  { deadlineMs = 30_000 }: { deadlineMs?: number } = {},
) {
  const parts = new AsyncDisposableStack()
  const log = listeningLog()
  const waits: WaitEvent[] = []
  const mount = parts.use(await FuseMount.create())
  const queue = new FetchQueue<Fetched>({
    ...DEFAULT_FETCH_LIMITS,
    deadlineMs: { foreground: deadlineMs, prefetch: deadlineMs, background: deadlineMs },
  })
  const store = parts.use(
    await BlobStore.open(
      { root: `${mount.dir}/blobs`, bytesMax: 2 ** 40 },
      { queue, log, onWait: (event) => waits.push(event) },
    ),
  )
  const server = parts.use(
    new FuseServer({ deviceFd: mount.deviceFd }, { source: store, memory: store.memory, log }),
  )
  parts.defer(() => mount.unmount())
  const add = async (name: string, layer: RandomLayer, source: UnitSource, inode: number) => {
    const { file } = await store.add({ inode, name, map: layer.map, source })
    server.add({ inode, name, size: layer.map.layerSize, units: file.units })
  }
  for (const [index, { name, layer, source }] of layers.entries()) {
    await add(name, layer, source ?? layer.source, INODE + index)
  }
  await server.start()
  return {
    mount,
    store,
    server,
    log,
    waits,
    add,
    [Symbol.asyncDispose]: () => parts.disposeAsync(),
  }
}

/** A source whose every fetch waits until the test says so. */
function controlled(layer: RandomLayer) {
  const asked: {
    unit: number
    answer: (bytes?: Uint8Array) => void
    fail: (error: Error) => void
  }[] = []
  let heard = Promise.withResolvers<void>()
  const source: UnitSource = {
    fetchUnit: (unit, { signal }) => {
      const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>()
      signal.addEventListener('abort', () => reject(new BlockError('CANCELLED', 'left')), {
        once: true,
      })
      asked.push({
        unit,
        answer: (bytes) => resolve(bytes ?? unitBytes(layer, unit)),
        fail: reject,
      })
      heard.resolve()
      heard = Promise.withResolvers()
      return promise
    },
  }
  const untilAsked = async (count: number): Promise<void> => {
    while (asked.length < count) await heard.promise
  }
  return { source, asked, untilAsked }
}

async function readRange(path: string, start: number, length: number): Promise<Buffer> {
  await using file = await open(path)
  const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, start)
  return buffer.subarray(0, bytesRead)
}

test('every layer is a file with its name, size and bytes', async () => {
  const layers = [3, 4, 5].map((seed) => ({
    name: `layer-${seed}`,
    layer: randomLayer(seed, 40, 9_000),
  }))
  await using served = await serve(layers)
  expect(await readdir(served.mount.mountpoint)).toEqual(['layer-3', 'layer-4', 'layer-5'])
  for (const [index, { name, layer }] of layers.entries()) {
    const { size, ino, mode } = await stat(served.mount.path(name))
    expect({ size, ino, mode }).toEqual({
      size: layer.bytes.length,
      ino: INODE + index,
      mode: 0o100400,
    })
    expect((await readFile(served.mount.path(name))).equals(layer.bytes), 'fetched').toBe(true)
    expect((await readFile(served.mount.path(name))).equals(layer.bytes), 'from disk').toBe(true)
  }
  const counters = served.server.counters()
  expect(counters.hitBytes).toBeGreaterThan(0)
  expect(counters.requests.get('read')).toBe(counters.hits + counters.misses)
})

test('a file is added and removed while the file system is in use', async () => {
  const [first, second] = [randomLayer(1, 5, 9_000), randomLayer(2, 5, 9_000)]
  await using served = await serve([])
  const path = served.mount.path('layer')
  await expect(stat(path)).rejects.toMatchObject({ code: 'ENOENT' })
  await served.add('layer', first, first.source, INODE)
  expect((await readFile(path)).equals(first.bytes)).toBe(true)
  {
    await using file = await open(path)
    served.server.remove(INODE)
    await expect(file.read(Buffer.alloc(10), 0, 10, 0)).rejects.toMatchObject({ errno: -116 }) // ESTALE
  }
  await expect(stat(path)).rejects.toMatchObject({ code: 'ENOENT' })
  await served.store.remove(INODE)
  await served.add('layer', second, second.source, INODE + 1)
  expect((await readFile(path)).equals(second.bytes)).toBe(true)
})

test.each([
  ['an inode that the kernel reserves', 1, 'INVALID_ARGUMENT'],
  ['an inode that is in use', INODE, 'ALREADY_EXISTS'],
])('%s is refused', async (_, inode, code) => {
  const layer = randomLayer(1, 5, 9_000)
  await using served = await serve([{ name: 'layer', layer }])
  const { units } = served.store.get(INODE)!.file
  expect(() => served.server.add({ inode, name: 'x', size: 1, units })).toThrowError(
    expect.objectContaining({ code }),
  )
})

test('reads end where the file ends', async () => {
  const layer = randomLayer(6, 10, 9_000)
  await using served = await serve([{ name: 'layer', layer }])
  const size = layer.bytes.length
  for (const [start, length, expected] of [
    [size - 5, 100, 5],
    [size, 100, 0],
    [size + 4_096, 100, 0],
    [0, 0, 0],
  ] as const) {
    const bytes = await readRange(served.mount.path('layer'), start, length)
    expect(bytes.equals(layer.bytes.subarray(start, start + expected)), `${start}+${length}`).toBe(
      true,
    )
  }
})

test('a unit that does not arrive before the deadline is EIO, and the next read gets it', async () => {
  const layer = randomLayer(7, 5, 9_000)
  const { source, asked, untilAsked } = controlled(layer)
  await using served = await serve([{ name: 'layer', layer, source }], { deadlineMs: 30 })
  const path = served.mount.path('layer')
  await expect(readRange(path, 0, 100)).rejects.toMatchObject({ code: 'EIO' })
  expect(served.log.sentences).toEqual([
    expect.stringMatching(
      /^process \d+ got EIO for 100 bytes at 0 of layer layer: .* within 30 ms/,
    ),
  ])
  const reading = readRange(path, 0, 100)
  await untilAsked(2)
  asked[1]?.answer()
  expect((await reading).equals(layer.bytes.subarray(0, 100))).toBe(true)
  expect(served.waits.map(({ error }) => error instanceof BlockError)).toEqual([true, false])
  expect(served.server.counters()).toMatchObject({ misses: 2, failures: 1, waiting: 0 })
})

test.each([
  ['too short', (bytes: Uint8Array) => bytes.subarray(1)],
  ['too long', (bytes: Uint8Array) => Buffer.concat([bytes, bytes])],
  ['empty', () => new Uint8Array()],
])('a unit that comes %s is EIO, never wrong bytes', async (_, spoil) => {
  const layer = randomLayer(8, 1, 9_000)
  const { source, asked, untilAsked } = controlled(layer)
  await using served = await serve([{ name: 'layer', layer, source }])
  const reading = readRange(served.mount.path('layer'), 0, layer.bytes.length)
  reading.catch(() => undefined)
  await untilAsked(1)
  asked[0]?.answer(spoil(unitBytes(layer, 0)))
  await expect(reading).rejects.toMatchObject({ code: 'EIO' })
})

test('what comes late for a read that failed is in no later read', async () => {
  const [first, second] = [randomLayer(31, 2, 9_000), randomLayer(32, 2, 9_000)]
  const [failing, other] = [controlled(first), controlled(second)]
  await using served = await serve([
    { name: 'first', layer: first, source: failing.source },
    { name: 'second', layer: second, source: other.source },
  ])
  const failed = readRange(served.mount.path('first'), 0, first.bytes.length)
  await failing.untilAsked(2)
  failing.asked.find(({ unit }) => unit === 0)?.fail(new BlockError('UNAVAILABLE', 'gone'))
  await expect(failed).rejects.toMatchObject({ code: 'EIO' })
  const reading = readRange(served.mount.path('second'), 0, second.bytes.length)
  await other.untilAsked(2)
  const answered = async (unit: number, { asked }: typeof other): Promise<void> => {
    const waits = served.waits.length
    asked.find((one) => one.unit === unit)?.answer()
    while (served.waits.length === waits) await new Promise(setImmediate)
  }
  await answered(1, other)
  await answered(1, failing)
  await answered(0, other)
  expect((await reading).equals(second.bytes)).toBe(true)
})

test('processes that read the same bytes cause one fetch', async () => {
  const layer = randomLayer(9, 3, 9_000)
  const { source, asked, untilAsked } = controlled(layer)
  await using served = await serve([{ name: 'layer', layer, source }])
  const path = served.mount.path('layer')
  const readings = [0, 1, 2].map((at) => readRange(path, at, 10))
  await untilAsked(1)
  // All three have arrived when three wait; none of them can be served yet.
  while (served.server.counters().waiting < 3) await new Promise(setImmediate)
  asked[0]?.answer()
  for (const [at, bytes] of (await Promise.all(readings)).entries()) {
    expect(bytes.equals(layer.bytes.subarray(at, at + 10))).toBe(true)
  }
  expect(asked).toHaveLength(1)
})

test('a hundred slow reads hold up no read of bytes that are here', async () => {
  const layer = randomLayer(10, 120, 5_000)
  const { source, asked, untilAsked } = controlled(layer)
  await using served = await serve([{ name: 'layer', layer, source }])
  const path = served.mount.path('layer')
  const present = readRange(path, 0, 1)
  await untilAsked(1)
  asked[0]?.answer()
  await present
  const slow = dd(
    path,
    Array.from({ length: 100 }, (_, index) => layer.map.starts[index + 10] ?? 0),
  )
  const ended = once(slow, 'exit')
  while (served.server.counters().waiting < 100) await new Promise(setImmediate)
  const started = performance.now()
  for (let read = 0; read < 50; read++) await readRange(path, 0, 1)
  expect((performance.now() - started) / 50).toBeLessThan(50)
  expect(served.server.counters().waiting).toBe(100)
  while (served.server.counters().waiting > 0) {
    for (const { answer } of asked) answer()
    await new Promise(setImmediate)
  }
  expect(await ended).toEqual([0, null])
})

/** Processes that each read one byte of a file, at the offsets given, all at once. */
function dd(path: string, offsets: readonly number[]): ChildProcess {
  const one = 'dd if="$path" bs=1 count=1 skip="$at" of=/dev/null status=none &'
  return spawn('sh', ['-c', `for at in ${offsets.join(' ')}; do ${one} done; wait`], {
    env: { PATH: process.env['PATH'], path },
    stdio: 'inherit',
  })
}

test('on a full disk every read is still answered', async () => {
  const layer = randomLayer(11, 60, 16_384)
  await using mount = await FuseMount.create()
  const tiny = join(mount.dir, 'tiny')
  await mkdir(tiny)
  mountFileSystem({ source: 'tiny', target: tiny, type: 'tmpfs', flags: 0, options: 'size=200k' })
  try {
    const log = listeningLog()
    await using store = await BlobStore.open(
      { root: tiny, bytesMax: 2 ** 40 },
      { queue: new FetchQueue(), log },
    )
    await using server = new FuseServer(
      { deviceFd: mount.deviceFd },
      { source: store, memory: store.memory, log },
    )
    using _unmount = { [Symbol.dispose]: () => mount.unmount() }
    const { file } = await store.add({
      inode: INODE,
      name: 'layer',
      map: layer.map,
      source: layer.source,
    })
    server.add({ inode: INODE, name: 'layer', size: layer.bytes.length, units: file.units })
    await server.start()
    for (let round = 0; round < 2; round++) {
      expect((await readFile(mount.path('layer'))).equals(layer.bytes)).toBe(true)
    }
    expect(file.isComplete).toBe(false)
    expect(server.counters().failures).toBe(0)
  } finally {
    umount(tiny, MNT_DETACH)
  }
})

test('serving is handed over without an unmount: what was in flight is answered by the next server', async () => {
  const layer = randomLayer(12, 20, 9_000)
  const { source, untilAsked } = controlled(layer)
  await using served = await serve([{ name: 'layer', layer, source }])
  const path = served.mount.path('layer')
  const reading = readRange(path, 0, layer.bytes.length)
  await untilAsked(1)
  await served.server.stop(served.mount.mountpoint, AbortSignal.abort())
  await served.store[Symbol.asyncDispose]()

  const log = listeningLog()
  const root = `${served.mount.dir}/blobs`
  await using store = await BlobStore.open(
    { root, bytesMax: 2 ** 40 },
    { queue: new FetchQueue(), log },
  )
  await using next = new FuseServer(
    { deviceFd: served.mount.deviceFd },
    { source: store, memory: store.memory, log },
  )
  using _unmount = { [Symbol.dispose]: () => served.mount.unmount() }
  const { file } = await store.add({
    inode: INODE,
    name: 'layer',
    map: layer.map,
    source: layer.source,
  })
  next.add({ inode: INODE, name: 'layer', size: layer.bytes.length, units: file.units })
  await next.start()
  expect((await reading).equals(layer.bytes)).toBe(true)
  expect(next.counters()).toMatchObject({ resent: 1, failures: 0 })
})

// Goal: a thread that reads a unit from disk while it is taken away never replies with the hole. Method: readers of
// random ranges, no byte of which is zero, while thirty times a third of all units is taken away.
test('reads through the mount are right while the units they read are taken away', async () => {
  const layer = randomLayer(13, 100, 16_384)
  await using served = await serve([{ name: 'layer', layer }])
  const { file } = served.store.get(INODE)!
  await using opened = await open(served.mount.path('layer'))
  const random = seeded(13)
  const ended = new AbortController()
  const evictor = async (): Promise<void> => {
    for (let evictions = 0; evictions < 30; ) {
      const third = [...Array(100).keys()].filter(() => random(3) === 0)
      if ((await file.evict(third)) > 0) evictions += 1
      await new Promise(setImmediate)
    }
    ended.abort()
  }
  const reader = async (): Promise<void> => {
    while (!ended.signal.aborted) {
      const [start, length] = [random(layer.bytes.length), 1 + random(100_000)]
      const { buffer, bytesRead } = await opened.read(Buffer.alloc(length), 0, length, start)
      if (!buffer.subarray(0, bytesRead).equals(layer.bytes.subarray(start, start + length))) {
        throw new Error(`${length} bytes at ${start} are wrong`)
      }
    }
  }
  await Promise.all([evictor(), reader(), reader(), reader()])
  const { hits, misses, failures } = served.server.counters()
  expect(Math.min(hits, misses)).toBeGreaterThan(20)
  expect(failures).toBe(0)
}, 30_000)

test('a descriptor without a mount is refused', async () => {
  await using device = await open('/dev/fuse', 'r+')
  await using store = await serve([])
  const server = new FuseServer(
    { deviceFd: device.fd },
    { source: store.store, memory: store.store.memory, log: store.log },
  )
  await expect(server.start()).rejects.toMatchObject({ code: 'FAILED_PRECONDITION' })
})

test('the kernel takes over a thousand requests in the background, so that none is held up by readahead', async () => {
  await using served = await serve([])
  const { dev } = await stat(served.mount.mountpoint)
  const control = join(served.mount.dir, 'control')
  await mkdir(control)
  mountFileSystem({ source: 'fusectl', target: control, type: 'fusectl', flags: 0 })
  try {
    const limit = (name: string) => readFile(join(control, `${dev & 0xff}`, name), 'utf8')
    expect(Number(await limit('max_background'))).toBe(1024)
    expect(Number(await limit('congestion_threshold'))).toBe(1024)
  } finally {
    umount(control, MNT_DETACH)
  }
})
