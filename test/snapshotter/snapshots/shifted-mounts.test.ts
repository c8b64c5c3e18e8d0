import { lstatSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { status } from '@grpc/grpc-js'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { listMounts } from '../../../snapshotter/kernel/mountinfo.ts'
import { IdMapping } from '../../../snapshotter/snapshots/id-mapping.ts'
import { ShiftedMounts } from '../../../snapshotter/snapshots/shifted-mounts.ts'
import { Snapshots } from '../../../snapshotter/snapshots/snapshots.ts'
import { failureOf } from '../../support/failure-of.ts'
import { noLazyLayers } from '../../support/no-lazy-layers.ts'
import { serveSnapshots } from '../../support/snapshots-client.ts'

let dir = ''
let root = ''
let lower = ''
let shifted: ShiftedMounts

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'shifted-'))
  root = join(dir, 'i')
  lower = join(dir, 'lower')
  mkdirSync(lower)
  writeFileSync(join(lower, 'file'), 'content')
  shifted = await ShiftedMounts.open(root)
})
afterEach(async () => {
  for (const id of await shifted.ids()) await shifted.release(id)
  rmSync(dir, { recursive: true })
})

const ids = IdMapping.of(
  new Map([
    ['containerd.io/snapshot/uidmapping', '0:100000:65536'],
    ['containerd.io/snapshot/gidmapping', '0:200000:65536'],
  ]),
)
if (ids === undefined) throw new Error('no mapping')

const mounts = (): string[] => listMounts(root).map(({ target }) => target)

test('directories are seen with shifted owners, to read, and as they were where they are', async () => {
  const [once = '', twice = ''] = await shifted.of(7, [lower, lower], ids)
  expect(readFileSync(join(once, 'file'), 'utf8')).toBe('content')
  expect(lstatSync(join(twice, 'file'))).toMatchObject({ uid: 100_000, gid: 200_000 })
  expect(lstatSync(join(lower, 'file'))).toMatchObject({ uid: 0, gid: 0 })
  expect(() => writeFileSync(join(once, 'file'), 'other')).toThrow(/EROFS/)
  expect(mounts()).toHaveLength(2)
})

test('are mounted once for a snapshot, and again what was unmounted', async () => {
  const first = await shifted.of(7, [lower], ids)
  expect(await shifted.of(7, [lower], ids)).toEqual(first)
  expect(mounts()).toHaveLength(1)
  expect(await shifted.ids()).toEqual([7])
})

test('are released without a file below them being touched', async () => {
  await shifted.of(7, [lower, lower], ids)
  await shifted.release(7)
  await shifted.release(8)
  expect(mounts()).toEqual([])
  expect(await shifted.ids()).toEqual([])
  expect(readFileSync(join(lower, 'file'), 'utf8')).toBe('content')
})

test('a file system that cannot shift owners is named', async () => {
  const failure = await failureOf(() => shifted.of(7, ['/proc/self'], ids))
  expect(failure).toMatchObject({ code: 'FAILED_PRECONDITION' })
  expect(failure.message).toContain('/proc/self')
  await shifted.release(7)
  expect(mounts()).toEqual([])
})

test('those of snapshots that a killed agent had not yet written down are gone once it is back', async () => {
  await shifted.of(99, [lower], ids)
  const log = { warn: () => undefined }
  await using snapshots = await Snapshots.open({ root: dir }, { layers: noLazyLayers, log })
  await snapshots.cleanup()
  expect(mounts()).toEqual([])
  expect(readFileSync(join(lower, 'file'), 'utf8')).toBe('content')
})

test('a snapshot for a user namespace stands on them, belongs to its root, and keeps them over a restart', async () => {
  const labels = {
    'containerd.io/snapshot/uidmapping': '0:100000:65536',
    'containerd.io/snapshot/gidmapping': '0:200000:65536',
  }
  const prepared = await (async () => {
    await using served = await serveSnapshots(dir)
    const { client } = served
    for (const [key, parent] of [
      ['one', ''],
      ['two', 'one'],
    ] as const) {
      await client.prepare(`extract ${key}`, parent)
      await client.commit(key, `extract ${key}`)
    }
    const [mount] = await client.prepare('mapped', 'two', labels)
    const [view] = await client.view('view', 'two', labels)
    expect(view?.options).toEqual(
      expect.arrayContaining([expect.stringMatching(`^lowerdir=${root}/`)]),
    )
    const wrong = { ...labels, 'containerd.io/snapshot/uidmapping': 'all' }
    await expect(client.prepare('wrong', 'two', wrong)).rejects.toMatchObject({
      code: status.INVALID_ARGUMENT,
    })
    return mount
  })()
  // Plain mounts: containerd need not know how to shift.
  expect(prepared?.options.join()).not.toContain('map=')
  expect(prepared?.options).toEqual(
    expect.arrayContaining([expect.stringMatching(`^lowerdir=${root}/`)]),
  )
  const upper = prepared?.options.find((option) => option.startsWith('upperdir='))?.slice(9) ?? ''
  expect(lstatSync(upper)).toMatchObject({ uid: 100_000, gid: 200_000 })
  expect(mounts()).toHaveLength(4)
  await using served = await serveSnapshots(dir)
  const { client } = served
  expect(await client.mounts('mapped')).toEqual([prepared])
  for (const key of ['mapped', 'view']) await client.remove(key)
  await client.cleanup()
  expect(mounts()).toEqual([])
})
