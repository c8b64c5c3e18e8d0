import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { pino } from 'pino'
import { expect, test } from 'vitest'
import { Snapshots } from '../../../snapshotter/snapshots/snapshots.ts'
import type { SyncFile } from '../../../snapshotter/write-ahead-log.ts'
import { FragileDisk } from '../../support/fragile-disk.ts'
import { noLazyLayers } from '../../support/no-lazy-layers.ts'
import { Scratch } from '../../support/scratch.ts'

// Goal: what somebody was told of is there after a power cut. Method: ext4 on a loop device that writes nothing by itself, whose file is copied
// at the moment of the cut; the copy is mounted and the agent opens what is there.

const { signal } = new AbortController()
const log = pino({ level: 'silent' })

function open(root: string, sync?: SyncFile): Promise<Snapshots> {
  return Snapshots.open({ root }, { layers: noLazyLayers, log, ...(sync && { sync }) })
}

async function prepare(snapshots: Snapshots, key: string, parent?: string): Promise<void> {
  await snapshots.prepare({ key, parent, labels: new Map() }, signal)
}

function names(snapshots: Snapshots): string[] {
  return [...snapshots.list([])]
    .flat()
    .map(({ name }) => name)
    .toSorted()
}

test('snapshots are there after a power cut as they were when they were last flushed, removed ones are not', async () => {
  await using scratch = Scratch.open('power-cut')
  using disk = FragileDisk.mount(join(scratch.dir, 'root'), scratch.dir)
  let image = ''
  {
    await using snapshots = await open(disk.path)
    await prepare(snapshots, 'a')
    const base = { key: 'a', name: 'base', parent: undefined, labels: new Map() }
    await snapshots.commit(base, signal)
    await prepare(snapshots, 'container', 'base')
    await prepare(snapshots, 'removed')
    await snapshots.flushed()
    snapshots.remove('removed')
    snapshots.update({ name: 'base', labels: new Map([['l', 'x']]), paths: [] })
    await snapshots.flushed()
    image = disk.cutPower()
  }
  disk.replace(image)
  await using snapshots = await open(disk.path)
  expect(names(snapshots)).toEqual(['base', 'container'])
  expect((await snapshots.stat('base', signal)).labels).toEqual(new Map([['l', 'x']]))
})

test('what was not flushed a power cut takes, as if it had never been asked for', async () => {
  await using scratch = Scratch.open('power-cut')
  using disk = FragileDisk.mount(join(scratch.dir, 'root'), scratch.dir)
  let image = ''
  {
    const { promise: cut, resolve } = Promise.withResolvers<void>()
    await using snapshots = await open(disk.path, () => cut)
    await prepare(snapshots, 'lost')
    image = disk.cutPower()
    resolve()
  }
  disk.replace(image)
  await using snapshots = await open(disk.path)
  expect(names(snapshots)).toEqual([])
  await snapshots.cleanup()
  expect(readdirSync(join(disk.path, 'snapshots'))).toEqual([])
  await prepare(snapshots, 'lost')
})

test('the files of a removed snapshot stay until the disk knows that it is removed', async () => {
  await using scratch = Scratch.open('power-cut')
  let [asked, release] = [0, (): void => {}]
  const sync = (): Promise<void> => {
    asked += 1
    const { promise, resolve } = Promise.withResolvers<void>()
    release = resolve
    if (asked === 1) resolve()
    return promise
  }
  await using snapshots = await open(scratch.dir, sync)
  await prepare(snapshots, 'removed')
  await snapshots.flushed()
  const [id = ''] = readdirSync(join(scratch.dir, 'snapshots'))
  const folder = join(scratch.dir, 'snapshots', id)
  snapshots.remove('removed')
  expect(names(snapshots)).toEqual([])
  // Ten others like it are deleted meanwhile, each from its beginning to its end.
  for (let other = 0; other < 10; other++) {
    const twin = join(scratch.dir, 'twin')
    for (const name of ['fs', 'work']) mkdirSync(join(twin, name), { recursive: true })
    await rm(twin, { recursive: true })
    expect(existsSync(folder)).toBe(true)
  }
  release()
  await snapshots.cleanup()
  expect(existsSync(folder)).toBe(false)
})
