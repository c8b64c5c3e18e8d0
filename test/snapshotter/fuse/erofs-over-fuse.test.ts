import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { BlobStore } from '../../../snapshotter/blobs/blob-store.ts'
import { FetchQueue } from '../../../snapshotter/blobs/fetch-queue.ts'
import type { UnitSource } from '../../../snapshotter/blobs/layer-source.ts'
import { mountErofs, unmountErofs } from '../../../snapshotter/erofs/mount-image.ts'
import { writeErofsImage } from '../../../snapshotter/erofs/write-image.ts'
import { FuseServer } from '../../../snapshotter/fuse/fuse-server.ts'
import type { DirNode, FileNode } from '../../../snapshotter/toc/layer-tree.ts'
import { FuseMount, listeningLog } from '../../support/fuse-mount.ts'
import { seeded } from '../../support/seeded.ts'
import { plainMap, unitBytes } from '../blobs/random-layer.ts'

const UNIT_BYTES = 1024 * 1024
const ATTRIBUTES = {
  uid: 0,
  gid: 0,
  mtimeSec: 0,
  mtimeNsec: 0,
  xattrs: new Map<string, Uint8Array>(),
}

/** A layer file with three files in it, as a tar has them: at multiples of 512, none of 4096. */
function layerOfFiles() {
  const random = seeded(3)
  const sizes = { small: 100, medium: 300_000, large: 12 * UNIT_BYTES + 77 }
  const files: { name: string; offset: number; size: number }[] = []
  let end = 512
  for (const [name, size] of Object.entries(sizes)) {
    files.push({ name, offset: end, size })
    end += Math.ceil(size / 512) * 512 + 512
  }
  const bytes = Buffer.alloc(end)
  for (let at = 0; at < end; at += 4) bytes.writeUInt32LE(random(2 ** 32), Math.min(at, end - 4))
  const starts = [...Array(Math.ceil(end / UNIT_BYTES)).keys()].map((unit) => unit * UNIT_BYTES)
  const map = plainMap(Float64Array.from([...starts, end]))
  const children = new Map(
    files.map(({ name, offset, size }): [string, FileNode] => [
      name,
      {
        ...ATTRIBUTES,
        kind: 'reg',
        mode: 0o644,
        size,
        layer: 0,
        extents: [{ fileOffset: 0, layerOffset: offset, length: size }],
      },
    ]),
  )
  const tree: DirNode = {
    ...ATTRIBUTES,
    kind: 'dir',
    mode: 0o755,
    children,
    opaque: false,
    implied: false,
  }
  return { files, bytes, map, tree }
}

/** EROFS mounted over the flat file of a layer that this process serves from `source`. */
async function mountLayer(source: UnitSource, { pageCache }: { pageCache: boolean }) {
  const { tree, map, files, bytes } = layerOfFiles()
  const parts = new AsyncDisposableStack()
  const log = listeningLog()
  const fuse = parts.use(await FuseMount.create())
  const root = join(fuse.dir, 'blobs')
  const store = parts.use(
    await BlobStore.open({ root, bytesMax: 2 ** 40 }, { queue: new FetchQueue(), log }),
  )
  const server = parts.use(
    new FuseServer(
      { deviceFd: fuse.deviceFd, pageCache },
      { source: store, memory: store.memory, log },
    ),
  )
  parts.defer(() => fuse.unmount())
  const { file } = await store.add({ inode: 1_001, name: 'layer', map, source })
  server.add({ inode: 1_001, name: 'layer', size: map.layerSize, units: file.units })
  await server.start()
  const [imagePath, target] = [join(fuse.dir, 'image'), join(fuse.dir, 'erofs')]
  const devices = [{ tag: 'layer', bytes: map.layerSize }]
  await writeFile(imagePath, writeErofsImage(tree, { devices, uuid: Buffer.alloc(16, 1) }).bytes)
  await mkdir(target)
  // Blocks this thread while the kernel looks up and opens the device: the serving threads answer.
  await mountErofs({ imagePath, devicePaths: [fuse.path('layer')], target, readAheadKb: 4096 })
  parts.defer(() => unmountErofs(target))
  const content = (name: string): Buffer => {
    const { offset, size } = files.find((entry) => entry.name === name)!
    return bytes.subarray(offset, offset + size)
  }
  return {
    files,
    content,
    server,
    read: (name: string) => readFile(join(target, name)),
    [Symbol.asyncDispose]: () => parts.disposeAsync(),
  }
}

const { bytes, map } = layerOfFiles()
const atOnce: UnitSource = { fetchUnit: (unit) => Promise.resolve(unitBytes({ bytes, map }, unit)) }

describe.each([
  ['past the page cache', false],
  ['through the page cache', true],
])('EROFS on a file that the kernel reads %s', (_, pageCache) => {
  test('gives every file as it is in the layer', async () => {
    await using mounted = await mountLayer(atOnce, { pageCache })
    for (const { name } of mounted.files) {
      expect((await mounted.read(name)).equals(mounted.content(name)), `file ${name}`).toBe(true)
    }
  })

  test('gives EIO while a unit cannot be had, and the right bytes after', async () => {
    let reachable = false
    const source: UnitSource = {
      fetchUnit: (unit, request) =>
        reachable ? atOnce.fetchUnit(unit, request) : Promise.reject(new Error('no provider')),
    }
    await using mounted = await mountLayer(source, { pageCache })
    for (const { name } of mounted.files) {
      await expect(mounted.read(name), `file ${name}`).rejects.toMatchObject({ code: 'EIO' })
    }
    reachable = true
    for (const { name } of mounted.files) {
      expect((await mounted.read(name)).equals(mounted.content(name)), `file ${name}`).toBe(true)
    }
  })
})

// The kernel reads ahead further and further, so the first fetches are answered; then none before three wait.
test('one process that reads a file in order has several units fetched at once', async () => {
  const waiting: (() => void)[] = []
  let asked = 0
  const source: UnitSource = {
    fetchUnit: async (unit, request) => {
      asked += 1
      if (asked > 4) {
        const { promise, resolve } = Promise.withResolvers<void>()
        waiting.push(resolve)
        if (waiting.length === 3) for (const answer of waiting) answer()
        if (waiting.length < 3) await promise
      }
      return atOnce.fetchUnit(unit, request)
    },
  }
  await using mounted = await mountLayer(source, { pageCache: false })
  expect((await mounted.read('large')).equals(mounted.content('large'))).toBe(true)
  expect(waiting.length).toBeGreaterThanOrEqual(3)
})
