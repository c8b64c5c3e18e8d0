import { mkdtemp, open, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { LayerFile } from '../../../snapshotter/blobs/layer-file.ts'
import { LayerFileWriter } from '../../../snapshotter/blobs/layer-file-writer.ts'
import { unitRange } from '../../../snapshotter/blobs/shared-units.ts'
import { MNT_DETACH, mount, umount } from '../../../snapshotter/kernel/libc.ts'
import { failureOf } from '../../support/failure-of.ts'
import { listeningLog } from '../../support/fuse-mount.ts'
import { seeded } from '../../support/seeded.ts'
import { plainMap, randomLayer, unitBytes } from './random-layer.ts'

const LAYER = randomLayer(1, 50, 20_000)
const log = listeningLog()
let dir: string

beforeEach(async () => {
  dir = await mkdtemp('/tmp/layer-file-')
})
afterEach(() => rm(dir, { recursive: true, force: true }))

const openLayer = () => LayerFile.open(dir, LAYER.map, { log })

async function keepAll(file: LayerFile, units: readonly number[]): Promise<void> {
  for (const unit of units) await file.keep(unit, unitBytes(LAYER, unit))
}

/** What the file gives for a unit, or undefined if it does not have it. */
async function readUnit(file: LayerFile, unit: number): Promise<Buffer | undefined> {
  if (file.isUnchecked(unit)) await file.check(unit)
  const range = unitRange(LAYER.map, unit)
  const bytes = Buffer.alloc(range.end - range.start)
  return (await file.readPresent(range, bytes)) ? bytes : undefined
}

/** The units that the file calls present and then has not, or reads otherwise than the layer says: never any. */
async function wrongUnits(file: LayerFile): Promise<number[]> {
  const wrong: number[] = []
  for (let unit = 0; unit < 50; unit++) {
    const isClaimed = file.has(unit)
    const bytes = await readUnit(file, unit)
    if (isClaimed && bytes === undefined) wrong.push(unit)
    if (bytes !== undefined && !bytes.equals(unitBytes(LAYER, unit))) wrong.push(unit)
  }
  return wrong
}

/** Opens the layer file, does something with it, and closes it, as a process before this one. */
async function earlier(work: (file: LayerFile) => Promise<unknown>): Promise<void> {
  await using file = await openLayer()
  await work(file)
}

test('a new layer file has nothing, and takes no room', async () => {
  await using file = await openLayer()
  expect(file.missingUnits()).toHaveLength(50)
  expect(file.presentBytes).toBe(0)
  expect(await readUnit(file, 0)).toBeUndefined()
  expect((await stat(join(dir, 'data'))).size).toBe(LAYER.bytes.length)
  expect(await file.diskBytes()).toBe(0)
})

test('what was kept is there after a restart, and nothing else', async () => {
  {
    await using file = await openLayer()
    await keepAll(file, [3, 4, 49])
  }
  await using file = await openLayer()
  expect(file.missingUnits()).toEqual(
    [...Array(50).keys()].filter((unit) => ![3, 4, 49].includes(unit)),
  )
  expect(file.presentBytes).toBe(
    [3, 4, 49].reduce((sum, unit) => sum + unitBytes(LAYER, unit).length, 0),
  )
  expect(await wrongUnits(file)).toEqual([])
})

test('a range is read only if all its units are there', async () => {
  await using file = await openLayer()
  await keepAll(file, [10, 11])
  const [start, end] = [unitRange(LAYER.map, 10).start + 1, unitRange(LAYER.map, 11).end - 1]
  const bytes = Buffer.alloc(end - start)
  expect(await file.readPresent({ start, end }, bytes)).toBe(true)
  expect(bytes.equals(LAYER.bytes.subarray(start, end))).toBe(true)
  expect(await file.readPresent({ start, end: end + 2 }, Buffer.alloc(end + 2 - start))).toBe(false)
})

test('evicted units are missing, now and after a restart, and their disk blocks are free', async () => {
  const units = [...Array(50).keys()]
  {
    await using file = await openLayer()
    await keepAll(file, units)
    expect(file.isComplete).toBe(true)
    await file.evict(units.slice(0, 25))
    expect(file.missingUnits()).toEqual(units.slice(0, 25))
    expect(await file.diskBytes()).toBeLessThan(file.presentBytes + 2 * 4096)
    expect(await wrongUnits(file)).toEqual([])
  }
  await using file = await openLayer()
  expect(file.missingUnits()).toEqual(units.slice(0, 25))
  expect(await wrongUnits(file)).toEqual([])
})

test('units evicted one by one free the blocks that they share', async () => {
  await using file = await openLayer()
  await keepAll(file, [...Array(50).keys()])
  for (let unit = 0; unit < 50; unit++) await file.evict([unit])
  expect(await file.diskBytes()).toBe(0)
})

// Goal: no order of keeping, evicting and flushing makes a wrong byte. Method: do them at random, many at once,
// and open a copy of the directory's state as a crash would leave it.
test('whatever is kept, evicted and flushed at once, what is called present is right', async () => {
  const random = seeded(5)
  const file = await openLayer()
  for (let round = 0; round < 40; round++) {
    const units = new Set(Array.from({ length: 12 }, () => random(50)))
    const work = [...units].map((unit, index) => {
      if (index % 4 === 3) return file.flush()
      return file.has(unit) ? file.evict([unit]) : file.keep(unit, unitBytes(LAYER, unit))
    })
    await Promise.all(work)
    expect(await wrongUnits(file), `round ${round}`).toEqual([])
    // As after SIGKILL: what the disk says now, beside a process that knows more.
    await using again = await openLayer()
    expect(await wrongUnits(again), `on disk in round ${round}`).toEqual([])
  }
  await file[Symbol.asyncDispose]()
})

describe('of what an earlier process left', () => {
  const units = [...Array(50).keys()]

  /** Changes a byte of some units, at random places. */
  async function damage(
    random: (max: number) => number,
    damaged: readonly number[],
  ): Promise<void> {
    await using data = await open(join(dir, 'data'), 'r+')
    for (const unit of damaged) {
      const { start, end } = unitRange(LAYER.map, unit)
      const at = start + random(end - start)
      const bit = 1 << random(8)
      await data.write(Buffer.of((LAYER.bytes[at] ?? 0) ^ bit), 0, 1, at)
    }
  }

  test('nothing is read before it was checked', async () => {
    await earlier((file) => keepAll(file, units))
    await using file = await openLayer()
    const range = unitRange(LAYER.map, 3)
    const bytes = Buffer.alloc(range.end - range.start)
    expect(file.has(3)).toBe(true)
    expect(await file.readPresent(range, bytes)).toBe(false)
    expect(await file.check(3)).toBe('sound')
    expect(await file.readPresent(range, bytes)).toBe(true)
    expect(bytes.equals(unitBytes(LAYER, 3))).toBe(true)
  })

  test.each([1, 2, 3, 4, 5])(
    'what the disk has damaged is missing once it was checked, and nothing else (seed %d)',
    async (seed) => {
      const random = seeded(seed)
      const damaged = units.filter(() => random(4) === 0)
      await earlier((file) => keepAll(file, units))
      await damage(random, damaged)
      const log = listeningLog()
      await using file = await LayerFile.open(dir, LAYER.map, { log })
      const states = await Promise.all(units.map((unit) => file.check(unit)))
      expect(units.filter((unit) => states[unit] === 'damaged')).toEqual(damaged)
      expect(file.missingUnits()).toEqual(damaged)
      expect(file.presentBytes).toBe(
        damaged.reduce((sum, unit) => sum - unitBytes(LAYER, unit).length, LAYER.bytes.length),
      )
      expect(log.sentences.filter((line) => line.includes('has damaged bytes'))).toHaveLength(1)
      await keepAll(file, damaged)
      expect(file.isComplete).toBe(true)
      expect(await wrongUnits(file)).toEqual([])
    },
  )

  test('units are missing that were called present and whose bytes a power cut took', async () => {
    await earlier((file) => keepAll(file, [1, 2, 3]))
    {
      await using data = await open(join(dir, 'data'), 'r+')
      const { start, end } = unitRange(LAYER.map, 2)
      await data.write(Buffer.alloc(end - start), 0, end - start, start)
    }
    await using file = await openLayer()
    expect(await readUnit(file, 2)).toBeUndefined()
    expect([1, 2, 3].map((unit) => file.has(unit))).toEqual([true, false, true])
    expect(await wrongUnits(file)).toEqual([])
  })

  test('units are missing that were evicted before they were looked at', async () => {
    await earlier((file) => keepAll(file, [1, 2]))
    {
      await using file = await openLayer()
      const checking = file.check(1)
      await file.evict([1, 2])
      expect(['sound', 'missing']).toContain(await checking)
      expect([1, 2].map((unit) => file.has(unit))).toEqual([false, false])
    }
    await using file = await openLayer()
    expect([1, 2].map((unit) => file.has(unit))).toEqual([false, false])
  })

  test('nothing is called damaged because the file was closed meanwhile', async () => {
    await earlier((file) => keepAll(file, [1, 2]))
    const log = listeningLog()
    const file = await LayerFile.open(dir, LAYER.map, { log })
    const checking = [1, 2].map((unit) => failureOf(() => file.check(unit)))
    await file[Symbol.asyncDispose]()
    for (const failure of [
      ...(await Promise.all(checking)),
      await failureOf(() => file.check(1)),
    ]) {
      expect(failure).toMatchObject({ code: 'ABORTED' })
    }
    expect(log.sentences).toEqual([])
  })

  test('units stay, also if they were not looked at before the next restart', async () => {
    await earlier((file) => keepAll(file, [1, 2]))
    await earlier((file) => keepAll(file, [3]))
    await using file = await openLayer()
    expect([1, 2, 3].map((unit) => file.has(unit))).toEqual([true, true, true])
    expect(await wrongUnits(file)).toEqual([])
  })
})

test('a unit that this process wrote is found damaged too, when it is checked', async () => {
  await using file = await openLayer()
  await keepAll(file, [1, 2])
  await writeFile(join(dir, 'data'), Buffer.alloc(LAYER.bytes.length, 7))
  expect(await file.check(1)).toBe('damaged')
  expect(await file.check(1)).toBe('missing')
  expect(await readUnit(file, 1)).toBeUndefined()
  await keepAll(file, [1])
  expect(await file.check(1)).toBe('sound')
})

describe('what cannot be trusted counts as missing:', () => {
  async function damageChecksums(): Promise<void> {
    const bytes = await readFile(join(dir, 'present'))
    // Behind a head of 32 bytes and two words of bits, in both slots.
    for (const slot of [0, 4096]) bytes.writeUInt8(bytes.readUInt8(slot + 44) ^ 1, slot + 44)
    await writeFile(join(dir, 'present'), bytes)
  }

  const damage: [string, () => Promise<void>][] = [
    ['a bitmap that is gone', () => rm(join(dir, 'present'))],
    ['a bitmap cut short', () => truncate(join(dir, 'present'), 40)],
    ['a bitmap of another kind', () => writeFile(join(dir, 'present'), Buffer.alloc(8192, 7))],
    ['a bitmap with damaged checksums', damageChecksums],
    ['bytes cut short', () => truncate(join(dir, 'data'), LAYER.bytes.length - 1)],
    ['bytes that are gone', () => rm(join(dir, 'data'))],
  ]
  test.each(damage)('%s', async (_, doDamage) => {
    await earlier((file) => keepAll(file, [1, 2, 3]))
    await doDamage()
    await using file = await openLayer()
    expect(file.missingUnits()).toHaveLength(50)
    await keepAll(file, [1])
    expect(await wrongUnits(file)).toEqual([])
  })

  test('a bitmap about other units', async () => {
    await earlier((file) => keepAll(file, [1, 2, 3]))
    const moved = LAYER.map.starts.map((start, unit) => (unit === 2 ? start + 1 : start))
    await using file = await LayerFile.open(dir, plainMap(moved), { log })
    expect(file.missingUnits()).toHaveLength(50)
  })
})

test('a torn write of the bitmap leaves the state before it', async () => {
  await earlier(async (file) => {
    await keepAll(file, [1])
    await file.flush()
    await keepAll(file, [2])
  })
  const path = join(dir, 'present')
  const bytes = await readFile(path)
  const newest = bytes.readBigUInt64LE(16) > bytes.readBigUInt64LE(4096 + 16) ? 0 : 4096
  bytes.writeUInt8(bytes.readUInt8(newest + 33) ^ 1, newest + 33)
  await writeFile(path, bytes)
  await using file = await openLayer()
  expect([1, 2].map((unit) => file.has(unit))).toEqual([true, false])
})

test('neither slot of the bitmap names what was evicted', async () => {
  await earlier(async (file) => {
    await keepAll(file, [1, 2])
    await file.flush()
    await file.evict([1])
  })
  const bytes = await readFile(join(dir, 'present'))
  for (const slot of [0, 4096]) expect(bytes.readUInt8(slot + 32), `slot at ${slot}`).toBe(0b100)
})

test('on a full disk units are not kept, which is said once, until there is room again', async () => {
  mount({ source: 'tiny', target: dir, type: 'tmpfs', flags: 0, options: 'size=160k' })
  try {
    const heard = listeningLog()
    await using file = await LayerFile.open(join(dir, 'layer'), LAYER.map, { log: heard })
    await keepAll(file, [...Array(50).keys()])
    expect(file.notKept).toBeGreaterThan(10)
    expect(heard.sentences).toHaveLength(1)
    expect(heard.sentences[0]).toContain('the disk is full')
    expect(await wrongUnits(file)).toEqual([])
    const present = [...Array(50).keys()].filter((unit) => file.has(unit))
    expect(present.length).toBeGreaterThan(0)
    await file.evict(present)
    await file.keep(49, unitBytes(LAYER, 49))
    expect(file.has(49)).toBe(true)
    expect(await wrongUnits(file)).toEqual([])
  } finally {
    umount(dir, MNT_DETACH)
  }
})

test.each([
  ['does not start at 0', [1, 10]],
  ['is not ascending', [0, 10, 10]],
  ['has fractions', [0, 1.5, 10]],
])('a map that %s is refused', async (_, starts) => {
  const opening = LayerFile.open(dir, plainMap(Float64Array.from(starts)), { log })
  await expect(opening).rejects.toMatchObject({ name: 'LayerError', code: 'INVALID_ARGUMENT' })
})

test('an empty layer is complete', async () => {
  await using file = await LayerFile.open(dir, plainMap(Float64Array.of(0)), { log })
  expect(file.isComplete).toBe(true)
})

describe('a layer file written as a stream', () => {
  test('is whole once it is sealed, whatever lay there before', async () => {
    await earlier((file) => keepAll(file, [7]))
    {
      await using writer = await LayerFileWriter.create(dir)
      for (let at = 0; at < LAYER.bytes.length; at += 7_777) {
        await writer.write(LAYER.bytes.subarray(at, at + 7_777))
      }
      await writer.seal(LAYER.map)
    }
    await using file = await openLayer()
    expect(file.isComplete).toBe(true)
    expect(file.presentBytes).toBe(LAYER.bytes.length)
    expect(await wrongUnits(file)).toEqual([])
  })

  test('counts for nothing if the process dies before it is sealed', async () => {
    const writer = await LayerFileWriter.create(dir)
    await writer.write(LAYER.bytes)
    await using file = await openLayer()
    expect(file.missingUnits()).toHaveLength(50)
    await writer[Symbol.asyncDispose]()
  })

  test('is gone if it is not sealed', async () => {
    {
      await using writer = await LayerFileWriter.create(dir)
      await writer.write(LAYER.bytes)
    }
    await expect(stat(dir)).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test('is not sealed with a map of another size', async () => {
    await using writer = await LayerFileWriter.create(dir)
    await writer.write(LAYER.bytes.subarray(1))
    await expect(writer.seal(LAYER.map)).rejects.toMatchObject({ code: 'DATA_LOSS' })
  })

  test('says that the disk is full', async () => {
    mount({ source: 'tiny', target: dir, type: 'tmpfs', flags: 0, options: 'size=64k' })
    try {
      await using writer = await LayerFileWriter.create(join(dir, 'layer'))
      await expect(writer.write(LAYER.bytes)).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
    } finally {
      umount(dir, MNT_DETACH)
    }
  })
})
