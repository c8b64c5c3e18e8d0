import { mkdtemp, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { BlobStore } from '../../../snapshotter/blobs/blob-store.ts'
import { FetchQueue } from '../../../snapshotter/blobs/fetch-queue.ts'
import type { WaitEvent } from '../../../snapshotter/blobs/lazy-layer.ts'
import { unitRange } from '../../../snapshotter/blobs/shared-units.ts'
import { MNT_DETACH, mount, umount } from '../../../snapshotter/kernel/libc.ts'
import { listeningLog } from '../../support/fuse-mount.ts'
import { seeded } from '../../support/seeded.ts'
import { type RandomLayer, randomLayer, unitBytes } from './random-layer.ts'

const FOREGROUND = { priority: 'foreground', signal: new AbortController().signal } as const
const UNIT_BYTES = 16_384
let root: string

beforeEach(async () => {
  root = await mkdtemp('/tmp/blob-store-')
})
afterEach(() => rm(root, { recursive: true, force: true }))

async function openStore(bytesMax = 2 ** 40) {
  const log = listeningLog()
  const waits: WaitEvent[] = []
  const completed: string[] = []
  const mostRead: string[] = []
  const store = await BlobStore.open(
    { root, bytesMax },
    {
      queue: new FetchQueue(),
      log,
      onWait: (event) => waits.push(event),
      onMostRead: ({ name }) => mostRead.push(name),
      onComplete: ({ name }) => completed.push(name),
    },
  )
  const add = (inode: number, layer: RandomLayer) =>
    store.add({ inode, name: `layer-${inode}`, map: layer.map, source: layer.source })
  return {
    store,
    log,
    waits,
    completed,
    mostRead,
    add,
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  }
}

const whole = ({ bytes }: RandomLayer) => ({ start: 0, end: bytes.length })

test('a range is fetched once and read from disk after', async () => {
  const layer = randomLayer(1, 20, UNIT_BYTES)
  await using held = await openStore()
  await held.add(100, layer)
  for (let round = 0; round < 2; round++) {
    expect((await held.store.read(100, whole(layer), FOREGROUND)).equals(layer.bytes)).toBe(true)
  }
  expect(layer.source.fetched.toSorted((a, b) => a - b)).toEqual([...Array(20).keys()])
  expect(held.waits).toHaveLength(20)
})

test('what a foreground read waited for is told, byte for byte', async () => {
  const layer = randomLayer(2, 20, UNIT_BYTES)
  await using held = await openStore()
  await held.add(100, layer)
  const [a, b] = [unitRange(layer.map, 4), unitRange(layer.map, 5)]
  await held.store.read(100, { start: a.end - 10, end: b.start + 5 }, { ...FOREGROUND, pid: 77 })
  await held.store.read(100, whole(layer), { ...FOREGROUND, priority: 'prefetch' })
  // Both were waited for at once, and either may be written first.
  expect(held.waits.toSorted((one, other) => one.unit - other.unit)).toMatchObject([
    { inode: 100, unit: 4, offset: a.end - 10, length: 10, pid: 77, error: undefined },
    { inode: 100, unit: 5, offset: b.start, length: 5, pid: 77, error: undefined },
  ])
})

test('ahead of a reader who goes on from front to back, units are fetched with the urgency of a prefetch', async () => {
  const layer = randomLayer(7, 60, UNIT_BYTES)
  await using held = await openStore()
  const asked: [unit: number, priority: string][] = []
  const fetchUnit: typeof layer.source.fetchUnit = (unit, request) => {
    asked.push([unit, request.priority])
    return layer.source.fetchUnit(unit, request)
  }
  await held.store.add({ inode: 100, name: 'layer', map: layer.map, source: { fetchUnit } })
  for (let unit = 10; unit < 40; unit++) {
    const part = unitRange(layer.map, unit)
    const bytes = await held.store.read(100, part, FOREGROUND)
    expect(bytes.equals(layer.bytes.subarray(part.start, part.end))).toBe(true)
  }
  const ofPriority = (wanted: string): number[] =>
    asked.flatMap(([unit, priority]) => (priority === wanted ? [unit] : []))
  // He waits again where he has caught up, each time after twice as much.
  const waited = ofPriority('foreground')
  expect(waited.slice(0, 4)).toEqual([10, 11, 12, 13])
  expect(waited.length).toBeLessThanOrEqual(7)
  const units = [...waited, ...ofPriority('prefetch')].toSorted((a, b) => a - b)
  expect(units).toEqual(units.map((_, index) => 10 + index))
  expect(held.waits.every(({ error }) => error === undefined)).toBe(true)
})

test('nothing is fetched ahead of a reader who waits for what somebody fetches who knows what is read', async () => {
  const layer = randomLayer(7, 60, UNIT_BYTES)
  await using held = await openStore()
  const asked: number[] = []
  const fetchUnit: typeof layer.source.fetchUnit = (unit, request) => {
    asked.push(unit)
    return layer.source.fetchUnit(unit, request)
  }
  const added = { inode: 100, name: 'layer', map: layer.map, source: { fetchUnit } }
  const lazy = await held.store.add(added)
  const listed = Array.from({ length: 12 }, (_, index) => 10 + index)
  {
    using _expected = lazy.expect(new Set(listed))
    for (const unit of listed) await held.store.read(100, unitRange(layer.map, unit), FOREGROUND)
    expect(asked).toEqual(listed)
  }
  for (let unit = 22; unit < 27; unit++) {
    await held.store.read(100, unitRange(layer.map, unit), FOREGROUND)
  }
  expect(asked.toSorted((a, b) => a - b).at(-1)).toBeGreaterThan(26)
})

test('a read has no memory before there are bytes, and all who wait for a unit have them before its memory is used again', async () => {
  const layer = randomLayer(9, 8, UNIT_BYTES)
  await using held = await openStore()
  const gate = Promise.withResolvers<void>()
  // Each unit in the memory of the one before.
  const lent = new Set<ArrayBufferLike>()
  const fetchUnit: typeof layer.source.fetchUnit = async (unit, request, into) => {
    await gate.promise
    const bytes = await layer.source.fetchUnit(unit, request)
    if (into !== undefined) lent.add(into.buffer)
    into?.set(bytes)
    return into ?? bytes
  }
  await held.store.add({ inode: 100, name: 'layer', map: layer.map, source: { fetchUnit } })
  const parts = Array.from({ length: 8 }, (_, unit) => unitRange(layer.map, unit))
  const memory = new Map<number, Buffer>()
  const reads = [...parts, ...parts].map(async (part, reader) => {
    const into = (): Buffer => {
      const bytes = memory.get(reader) ?? Buffer.alloc(part.end - part.start)
      memory.set(reader, bytes)
      return bytes
    }
    await held.store.readInto(100, part, into, FOREGROUND)
    return into().equals(layer.bytes.subarray(part.start, part.end))
  })
  for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate)
  expect(memory.size).toBe(0)
  gate.resolve()
  expect(await Promise.all(reads)).toEqual(reads.map(() => true))
  expect(lent.size).toBeGreaterThan(0)
})

test('that readers wait for most of a layer is told once, and not before', async () => {
  const layer = randomLayer(8, 40, UNIT_BYTES)
  await using held = await openStore()
  await held.add(100, layer)
  let readBytes = 0
  for (let step = 0; step < 40; step++) {
    // Here and there, so that nothing is fetched ahead.
    const part = unitRange(layer.map, (7 * step) % 40)
    await held.store.read(100, part, { ...FOREGROUND, priority: 'background' })
    expect(held.mostRead).toEqual([])
  }
  await using other = await openStore()
  const again = randomLayer(8, 40, UNIT_BYTES)
  await other.store.add({ inode: 100, name: 'other', map: again.map, source: again.source })
  for (let step = 0; step < 40; step++) {
    const part = unitRange(again.map, (7 * step) % 40)
    await other.store.read(100, part, FOREGROUND)
    readBytes += part.end - part.start
    expect(other.mostRead, `${readBytes} bytes`).toEqual(
      readBytes > again.bytes.length / 2 ? ['other'] : [],
    )
  }
})

test('a layer that is whole is announced once it is durable', async () => {
  const layer = randomLayer(3, 20, UNIT_BYTES)
  await using held = await openStore()
  const { file } = await held.add(100, layer)
  await held.store.read(100, { start: 0, end: layer.bytes.length - 1 }, FOREGROUND)
  await held.store[Symbol.asyncDispose]()
  expect(held.completed).toEqual(['layer-100'])
  expect(file.isChanged).toBe(false)
})

test.each([
  ['too few bytes', () => new Uint8Array(5)],
  ['too many bytes', () => new Uint8Array(UNIT_BYTES + 1)],
  ['no bytes', () => 'text' as unknown as Uint8Array],
])('a unit that comes with %s is refused, and asked for again', async (_, wrong) => {
  const layer = randomLayer(4, 20, UNIT_BYTES)
  await using held = await openStore()
  let good = false
  const fetchUnit = (unit: number) => Promise.resolve(good ? unitBytes(layer, unit) : wrong())
  await held.store.add({ inode: 100, name: 'layer', map: layer.map, source: { fetchUnit } })
  const reading = held.store.read(100, whole(layer), FOREGROUND)
  await expect(reading).rejects.toMatchObject({ name: 'LayerError', code: 'DATA_LOSS' })
  good = true
  expect((await held.store.read(100, whole(layer), FOREGROUND)).equals(layer.bytes)).toBe(true)
})

test('over its cap the store lets go of the units used longest ago, of any layer', async () => {
  const layers = [randomLayer(5, 100, UNIT_BYTES), randomLayer(6, 100, UNIT_BYTES)]
  const bytesMax = layers.reduce((sum, { bytes }) => sum + bytes.length, 0) * 0.9
  await using held = await openStore(bytesMax)
  const [a, b] = [await held.add(100, layers[0]!), await held.add(101, layers[1]!)]
  await a.fill(99, FOREGROUND)
  for (let unit = 0; unit < 99; unit++) await a.fill(unit, FOREGROUND)
  // Unit 99 was read a moment ago, all others of this layer long before.
  a.file.units.lastUse.fill(1, 0, 99)
  for (let unit = 0; unit < 100; unit++) await b.fill(unit, FOREGROUND)
  await held.store[Symbol.asyncDispose]()
  expect(a.file.has(99)).toBe(true)
  expect(b.file.isComplete).toBe(true)
  expect(a.file.missingUnits().length).toBeGreaterThan(10)
  expect(a.file.presentBytes + b.file.presentBytes).toBeLessThan(bytesMax)
})

test('a layer whose file was mounted loses nothing until the next boot, though it was unmounted', async () => {
  const [mounted, other] = [randomLayer(7, 60, UNIT_BYTES), randomLayer(8, 60, UNIT_BYTES)]
  {
    await using before = await openStore()
    const layer = await before.add(100, mounted)
    await layer.read(whole(mounted), FOREGROUND)
    layer.pin()[Symbol.dispose]()
  }
  await using held = await openStore(1)
  const { file } = await held.add(100, mounted)
  await held.add(101, other)
  expect((await held.store.read(101, whole(other), FOREGROUND)).equals(other.bytes)).toBe(true)
  await held.store[Symbol.asyncDispose]()
  expect(file.isComplete).toBe(true)
  expect(held.log.sentences.at(-1)).toContain('can only be removed whole')
})

// Goal: eviction at any moment changes no byte that is read. Method: readers of random ranges, each checked against
// the plain bytes, while thirty times a third of what is there is taken away under them.
test('reads are right while the units they read are taken away', async () => {
  const layer = randomLayer(9, 300, UNIT_BYTES)
  await using held = await openStore()
  const { file } = await held.add(100, layer)
  const random = seeded(9)
  const ended = new AbortController()
  const evictor = async (): Promise<void> => {
    for (let evictions = 0; evictions < 30; ) {
      const third = [...Array(300).keys()].filter(() => random(3) === 0)
      if ((await file.evict(third)) > 0) evictions += 1
      await new Promise(setImmediate)
    }
    ended.abort()
  }
  const reader = async (): Promise<void> => {
    while (!ended.signal.aborted) {
      const start = random(layer.bytes.length)
      const end = Math.min(layer.bytes.length, start + 1 + random(100_000))
      const bytes = await held.store.read(100, { start, end }, FOREGROUND)
      if (!bytes.equals(layer.bytes.subarray(start, end))) throw new Error(`wrong: ${start}-${end}`)
    }
  }
  await Promise.all([evictor(), ...Array.from({ length: 8 }, reader)])
  expect(layer.source.fetched.length).toBeGreaterThan(500)
}, 30_000)

test('on a full disk every read is still answered', async () => {
  mount({ source: 'tiny', target: root, type: 'tmpfs', flags: 0, options: 'size=200k' })
  try {
    const layer = randomLayer(10, 60, UNIT_BYTES)
    await using held = await openStore()
    await held.add(100, layer)
    for (let round = 0; round < 3; round++) {
      expect((await held.store.read(100, whole(layer), FOREGROUND)).equals(layer.bytes)).toBe(true)
    }
    expect(held.store.counters().notKept).toBeGreaterThan(60)
    expect(held.log.sentences.filter((line) => line.includes('the disk is full'))).toHaveLength(1)
  } finally {
    umount(root, MNT_DETACH)
  }
})

test('removing a layer ends the reads that wait for it and gives its space back', async () => {
  const layer = randomLayer(11, 20, UNIT_BYTES)
  await using held = await openStore()
  const asked = Promise.withResolvers<void>()
  const source = {
    fetchUnit: (unit: number, { signal }: { signal: AbortSignal }) => {
      if (unit < 10) return layer.source.fetchUnit(unit, { priority: 'foreground', signal })
      asked.resolve()
      return new Promise<Uint8Array>((_, reject) => {
        signal.addEventListener('abort', () => reject(new Error('left')), { once: true })
      })
    },
  }
  const { file } = await held.store.add({ inode: 100, name: 'layer', map: layer.map, source })
  const waiting = held.store.read(100, whole(layer), FOREGROUND)
  waiting.catch(() => undefined)
  await asked.promise
  await held.store.remove(100)
  await expect(waiting).rejects.toMatchObject({ code: 'CANCELLED' })
  expect(await readdir(root)).toEqual([])
  expect([...file.units.present]).toEqual([0])
  await expect(held.store.read(100, whole(layer), FOREGROUND)).rejects.toMatchObject({
    code: 'NOT_FOUND',
  })
})

test('a mounted layer is not removed', async () => {
  const layer = randomLayer(12, 5, UNIT_BYTES)
  await using held = await openStore()
  const lazy = await held.add(100, layer)
  await lazy.read(whole(layer), FOREGROUND)
  const pin = lazy.pin()
  await expect(held.store.remove(100)).rejects.toMatchObject({ code: 'FAILED_PRECONDITION' })
  pin[Symbol.dispose]()
  await held.store.remove(100)
  expect(held.store.get(100)).toBeUndefined()
})

test('what a crash left on disk and nothing vouches for is given back when room is needed', async () => {
  const layers = [randomLayer(16, 50, UNIT_BYTES), randomLayer(17, 50, UNIT_BYTES)]
  {
    await using before = await openStore()
    const { file } = await before.add(100, layers[0]!)
    await before.store.read(100, whole(layers[0]!), FOREGROUND)
    await before.store.flush()
    await rm(join(file.dir, 'present'))
  }
  await using held = await openStore(layers[1]!.bytes.length * 1.1)
  const lost = await held.add(100, layers[0]!)
  expect(await lost.file.diskBytes()).toBeGreaterThan(lost.file.map.layerSize / 2)
  const { file } = await held.add(101, layers[1]!)
  file.noteMount()
  expect((await held.store.read(101, whole(layers[1]!), FOREGROUND)).equals(layers[1]!.bytes)).toBe(
    true,
  )
  while ((await lost.file.diskBytes()) > 0) await new Promise(setImmediate)
})

test('directories of layers that nobody holds are swept away, no others', async () => {
  const layer = randomLayer(13, 5, UNIT_BYTES)
  {
    await using held = await openStore()
    await held.add(100, layer)
    await held.add(101, layer)
  }
  await using held = await openStore()
  await held.add(101, layer)
  expect(await held.store.sweep()).toEqual(['layer-100'])
  expect(await readdir(root)).toEqual(['layer-101'])
})

test.each(['', '..', 'a/b', '.hidden', 'x'.repeat(201)])(
  '%j is no name for a layer',
  async (name) => {
    const layer = randomLayer(14, 5, UNIT_BYTES)
    await using held = await openStore()
    const adding = held.store.add({ inode: 100, name, map: layer.map, source: layer.source })
    await expect(adding).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  },
)

test('a layer written as a stream is held without a fetch', async () => {
  const layer = randomLayer(15, 20, UNIT_BYTES)
  await using held = await openStore()
  {
    await using writer = await held.store.write('layer-100')
    await writer.write(layer.bytes)
    await writer.seal(layer.map)
  }
  const lazy = await held.add(100, layer)
  expect(lazy.file.isComplete).toBe(true)
  expect((await lazy.read(whole(layer), FOREGROUND)).equals(layer.bytes)).toBe(true)
  expect(layer.source.fetched).toEqual([])
  expect((await stat(join(root, 'layer-100', 'data'))).size).toBe(layer.bytes.length)
})
