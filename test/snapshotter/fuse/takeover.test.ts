import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { open, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { FuseMount } from '../../support/fuse-mount.ts'
import { seeded } from '../../support/seeded.ts'
import { type RandomLayer, randomLayer } from '../blobs/random-layer.ts'
import type { ServingCounts, ServingOrder } from './serving-process.ts'

const READS = 10_000
const KILLS = 10
const READS_PER_KILL = Math.floor(READS / (KILLS + 1))
const READERS = 4 // As many as libuv has threads to block in reads.

/** Starts a server on the mount, whose descriptor this process, the keeper, holds open through all of them. */
async function startServer(mount: FuseMount, order: ServingOrder): Promise<ChildProcess> {
  const script = fileURLToPath(new URL('./serving-process.ts', import.meta.url))
  const server = spawn(process.execPath, [script, JSON.stringify(order)], {
    stdio: ['ignore', 'inherit', 'inherit', mount.deviceFd, 'ipc'],
  })
  await once(server, 'message')
  return server
}

async function countsOf(server: ChildProcess): Promise<ServingCounts> {
  server.send('counts')
  const [counts] = (await once(server, 'message')) as [ServingCounts]
  return counts
}

async function kill(server: ChildProcess): Promise<void> {
  const exit = once(server, 'exit')
  server.kill('SIGKILL')
  await exit
}

function orderFor(mount: FuseMount, layer: RandomLayer, bytesMax: number): ServingOrder {
  return {
    root: join(mount.dir, 'blobs'),
    bytesMax,
    plainPath: join(mount.dir, 'plain'),
    starts: [...layer.map.starts],
    inode: 1_001,
    name: 'layer',
  }
}

// Closing a file asks a FUSE server for a FLUSH, and an exec closes files: the server would wait for itself.
test('a process starts though its starter has a file open and nobody serves', async () => {
  const layer = randomLayer(41, 10, 60_000)
  await using mount = await FuseMount.create()
  await writeFile(join(mount.dir, 'plain'), layer.bytes)
  const server = await startServer(mount, orderFor(mount, layer, 2 ** 40))
  await using file = await open(mount.path('layer'))
  expect((await file.read(Buffer.alloc(10), 0, 10, 0)).bytesRead).toBe(10)
  await kill(server)
  expect(await once(spawn('true'), 'exit')).toEqual([0, null])
  mount.unmount()
})

// Goal: nobody who reads through the mount notices that the store forgets and that its server dies. Method: 10,000
// random ranges, each compared with the plain file, with a store of a quarter of the layer, and SIGKILL ten times.
test('10,000 random ranges are those of the plain file, with eviction, and the server killed ten times', async () => {
  const layer = randomLayer(42, 400, 60_000)
  const random = seeded(42)
  await using mount = await FuseMount.create()
  await writeFile(join(mount.dir, 'plain'), layer.bytes)
  const order = orderFor(mount, layer, layer.bytes.length / 4)
  let server = await startServer(mount, order)
  try {
    await using file = await open(mount.path('layer'))
    const killTimes = Array.from({ length: KILLS }, () => Promise.withResolvers<void>())
    let [begun, done] = [0, 0]
    const reader = async (): Promise<void> => {
      const buffer = Buffer.alloc(100_000)
      while (begun < READS) {
        begun += 1
        const start = random(layer.bytes.length)
        const length = 1 + random(buffer.length)
        const { bytesRead } = await file.read(buffer, 0, length, start)
        const expected = layer.bytes.subarray(start, start + length)
        if (!buffer.subarray(0, bytesRead).equals(expected)) {
          throw new Error(`${length} bytes at ${start}: got others than the plain file has`)
        }
        done += 1
        if (done % READS_PER_KILL === 0) killTimes[done / READS_PER_KILL - 1]?.resolve()
      }
    }
    const readers = Promise.all(Array.from({ length: READERS }, reader))
    readers.catch(() => undefined)

    const generations: ServingCounts[] = []
    for (const killTime of killTimes) {
      await Promise.race([killTime.promise, readers])
      generations.push(await countsOf(server))
      await kill(server)
      server = await startServer(mount, order)
    }
    await readers
    generations.push(await countsOf(server))

    const sum = (name: keyof ServingCounts) =>
      generations.reduce((all, counts) => all + counts[name], 0)
    expect(done).toBe(READS)
    expect(sum('failures')).toBe(0)
    expect(sum('resent'), 'reads that were in flight at a kill').toBeGreaterThan(0)
    expect(sum('hits')).toBeGreaterThan(1_000)
    expect(sum('misses')).toBeGreaterThan(1_000)
    expect(sum('evictedBytes')).toBeGreaterThan(layer.bytes.length)
  } finally {
    server.kill('SIGKILL')
  }
}, 120_000)
