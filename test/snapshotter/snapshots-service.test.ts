import { mkdtempSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { status } from '@grpc/grpc-js'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { ClaimedLayer } from '../../snapshotter/snapshots/lazy-layers.ts'
import { mountAll } from '../support/mount-all.ts'
import { noLazyLayers } from '../support/no-lazy-layers.ts'
import { serveSnapshots } from '../support/snapshots-client.ts'

let root = ''
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'service-'))
})
afterEach(() => {
  rmSync(root, { recursive: true })
})

const { signal } = new AbortController()
const ref = 'containerd.io/snapshot.ref'

async function namesOf(snapshots: AsyncIterable<{ name: string }>): Promise<string[]> {
  const names: string[] = []
  for await (const { name } of snapshots) names.push(name)
  return names
}

test('a claimed layer is ALREADY_EXISTS, and containerd finds it by its label and parent', async () => {
  const claim = (): Promise<ClaimedLayer> =>
    Promise.resolve({ layer: 1, diffId: 'sha256:c1', size: 5_000_000_000n, inodes: 3n })
  await using served = await serveSnapshots(root, { ...noLazyLayers, claim, holds: () => true })
  const { client } = served
  const labels = { [ref]: 'sha256:c1' }
  await expect(client.prepare('k8s.io/1/extract', '', labels)).rejects.toMatchObject({
    code: status.ALREADY_EXISTS,
  })
  const found = await namesOf(client.walk(`labels."${ref}"==sha256:c1,parent==""`))
  expect(found).toEqual(['sha256:c1'])
  expect(await client.stat('sha256:c1')).toMatchObject({ kind: 'COMMITTED', parent: '', labels })
  expect(await client.usage('sha256:c1')).toEqual({ size: '5000000000', inodes: '3' })
})

test('a layer that is removed each time before its snapshot is made is ABORTED, and one that stays is claimed', async () => {
  let removals = 3
  const claim = (): Promise<ClaimedLayer> =>
    Promise.resolve({ layer: 1, diffId: 'sha256:c1', size: 1n, inodes: 1n })
  const holds = (): boolean => removals-- <= 0
  await using served = await serveSnapshots(root, { ...noLazyLayers, claim, holds })
  const prepare = () => served.client.prepare('k8s.io/1/extract', '', { [ref]: 'sha256:c1' })
  await expect(prepare()).rejects.toMatchObject({
    code: status.ABORTED,
    details: expect.stringContaining('try again'),
  })
  removals = 2
  await expect(prepare()).rejects.toMatchObject({ code: status.ALREADY_EXISTS })
})

test('no call is answered before the disk has what the answer tells of, be it a failure', async () => {
  const claim = (): Promise<ClaimedLayer> =>
    Promise.resolve({ layer: 1, diffId: 'sha256:c1', size: 1n, inodes: 1n })
  let disk = Promise.withResolvers<void>()
  let asked = Promise.withResolvers<void>()
  const sync = (): Promise<void> => {
    asked.resolve()
    return disk.promise
  }
  await using served = await serveSnapshots(
    root,
    { ...noLazyLayers, claim, holds: () => true },
    sync,
  )
  const { client } = served
  const calls = [
    () => client.prepare('k', ''),
    () => client.prepare('claimed', '', { [ref]: 'sha256:c1' }).catch(({ code }) => code),
    () => client.commit('base', 'k'),
    () => client.update({ name: 'base', labels: { l: 'x' } }),
    () => client.view('view', 'base'),
    () => client.remove('view'),
  ]
  for (const call of calls) {
    let answered = false
    const answer = call().finally(() => {
      answered = true
    })
    await asked.promise
    for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
    expect(answered).toBe(false)
    disk.resolve()
    await answer
    ;[disk, asked] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  }
})

test('a list is not told before the disk has what is in it', async () => {
  const disk = Promise.withResolvers<void>()
  await using served = await serveSnapshots(root, noLazyLayers, () => disk.promise)
  const { client, snapshots } = served
  await snapshots.prepare({ key: 'k', parent: undefined, labels: new Map() }, signal)
  let listed = false
  const list = namesOf(client.walk()).then((names) => {
    listed = true
    return names
  })
  const stat = client.stat('none').catch(({ code }) => {
    listed = true
    return code
  })
  for (let turn = 0; turn < 200; turn++) await new Promise(setImmediate)
  expect(listed).toBe(false)
  disk.resolve()
  expect(await list).toEqual(['k'])
  expect(await stat).toBe(status.NOT_FOUND)
})

test('a filter that cannot be parsed is INVALID_ARGUMENT', async () => {
  await using served = await serveSnapshots(root)
  await expect(namesOf(served.client.walk('name=x'))).rejects.toMatchObject({
    code: status.INVALID_ARGUMENT,
  })
})

test('350 snapshots are listed over the wire, each once', async () => {
  await using served = await serveSnapshots(root)
  const { client } = served
  await client.prepare('a', '')
  await client.commit('base', 'a')
  const keys = Array.from({ length: 350 }, (_, index) => `view ${index}`)
  for (let start = 0; start < keys.length; start += 50) {
    await Promise.all(keys.slice(start, start + 50).map((key) => client.view(key, 'base')))
  }
  const listed = await namesOf(client.walk('kind==view'))
  expect(listed.toSorted()).toEqual(keys.toSorted())
})

// On a file system of 8 MiB of its own.
test('on a full disk calls are RESOURCE_EXHAUSTED and undone, and removing makes room again', async () => {
  const disk = mkdtempSync(join(tmpdir(), 'full-'))
  try {
    await using _mounted = await mountAll(
      [{ type: 'tmpfs', source: 'tmpfs', options: ['size=8m'] }],
      disk,
    )
    await using served = await serveSnapshots(disk)
    const { client } = served
    const [mount] = await client.prepare('large', '')
    expect(() => writeFileSync(`${mount?.source}/file`, Buffer.alloc(16 << 20))).toThrow(/ENOSPC/)

    const full = { code: status.RESOURCE_EXHAUSTED }
    const fill = async (): Promise<void> => {
      for (let index = 0; ; index++) await client.prepare(`small ${index}`, '')
    }
    await expect(fill()).rejects.toMatchObject(full)
    const before = await namesOf(client.walk())
    await expect(client.prepare('one more', '')).rejects.toMatchObject(full)
    expect(await namesOf(client.walk())).toEqual(before)

    await client.remove('large')
    await client.cleanup()
    await client.prepare('one more', '')
    expect(await namesOf(client.walk())).toEqual([...before.slice(1), 'one more'])
  } finally {
    rmdirSync(disk)
  }
})
