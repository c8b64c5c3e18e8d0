import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { BlobStore } from '../../../snapshotter/blobs/blob-store.ts'
import { FetchQueue } from '../../../snapshotter/blobs/fetch-queue.ts'
import { listeningLog } from '../../support/fuse-mount.ts'
import { mountAll } from '../../support/mount-all.ts'
import { randomLayer } from './random-layer.ts'

const FOREGROUND = { priority: 'foreground', signal: new AbortController().signal } as const
const DISK_BYTES = 64 << 20

/** An ext4 on a loop device, whose sectors can be made unreadable: what lies behind the end of its file gives EIO. */
async function failingDisk(): Promise<{
  readonly dir: string
  fail(): void
}> {
  const folder = mkdtempSync(join(tmpdir(), 'failing-disk-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const [image, dir] = [join(folder, 'image'), join(folder, 'disk')]
  mkdirSync(dir)
  writeFileSync(image, '')
  truncateSync(image, DISK_BYTES)
  execFileSync('mkfs.ext4', ['-q', '-O', '^has_journal', image])
  const mounted = await mountAll([{ type: 'ext4', source: image, options: ['loop'] }], dir)
  onTestFinished(() => mounted[Symbol.asyncDispose]())
  return { dir, fail: () => truncateSync(image, 1 << 20) }
}

test('bytes that the disk cannot read are fetched again, and given to the reader', async () => {
  const disk = await failingDisk()
  const log = listeningLog()
  const layer = randomLayer(7, 40, 100_000)
  const whole = { start: 0, end: layer.bytes.length }
  await using store = await BlobStore.open(
    { root: join(disk.dir, 'layers'), bytesMax: 2 ** 40 },
    { queue: new FetchQueue(), log, onWait: () => {}, onComplete: () => {} },
  )
  const held = await store.add({ inode: 100, name: 'layer', map: layer.map, source: layer.source })
  expect((await store.read(100, whole, FOREGROUND)).equals(layer.bytes)).toBe(true)
  await held.file.flush()
  await held.file.dropCached()
  const fetchedBefore = layer.source.fetched.length

  disk.fail()
  expect((await store.read(100, whole, FOREGROUND)).equals(layer.bytes)).toBe(true)
  expect(layer.source.fetched.length).toBeGreaterThan(fetchedBefore)
  expect(log.sentences.filter((sentence) => sentence.includes('could not read'))).toHaveLength(1)
})
