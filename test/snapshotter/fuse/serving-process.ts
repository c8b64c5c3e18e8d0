/**
 * A server that a test may kill: serves the file system mounted on descriptor 3, one layer, the bytes of which it
 * "fetches" from a plain file in a few milliseconds. Answers any message with its counters.
 */
import { open } from 'node:fs/promises'
import { setTimeout as fetchTime } from 'node:timers/promises'
import { BlobStore } from '../../../snapshotter/blobs/blob-store.ts'
import { FetchQueue } from '../../../snapshotter/blobs/fetch-queue.ts'
import { unitRange } from '../../../snapshotter/blobs/shared-units.ts'
import { FuseServer } from '../../../snapshotter/fuse/fuse-server.ts'
import { plainMap } from '../blobs/random-layer.ts'

/** What the process is told in its first argument, as JSON. */
export type ServingOrder = {
  readonly root: string
  readonly bytesMax: number
  readonly plainPath: string
  readonly starts: readonly number[]
  readonly inode: number
  readonly name: string
}

/** What it answers. */
export type ServingCounts = {
  readonly hits: number
  readonly misses: number
  readonly failures: number
  readonly resent: number
  readonly evictedBytes: number
}

const order = JSON.parse(process.argv[2] ?? '') as ServingOrder
const complain = (_facts: object, sentence: string): void => console.error(sentence)
const log = { debug: () => {}, info: () => {}, warn: complain, error: complain }
const map = plainMap(Float64Array.from(order.starts))
const plain = await open(order.plainPath)

const source = {
  fetchUnit: async (unit: number): Promise<Uint8Array> => {
    await fetchTime(1 + (unit % 5))
    const { start, end } = unitRange(map, unit)
    const bytes = Buffer.alloc(end - start)
    await plain.read(bytes, 0, bytes.length, start)
    return bytes
  },
}
const store = await BlobStore.open(
  { root: order.root, bytesMax: order.bytesMax },
  { queue: new FetchQueue(), log },
)
const { inode, name } = order
const { file } = await store.add({ inode, name, map, source })
const server = new FuseServer({ deviceFd: 3 }, { source: store, memory: store.memory, log })
server.add({ inode, name, size: map.layerSize, units: file.units })
await server.start()

process.on('message', () => {
  const { hits, misses, failures, resent } = server.counters()
  const { evictedBytes } = store.counters()
  process.send?.({ hits, misses, failures, resent, evictedBytes } satisfies ServingCounts)
})
process.send?.('ready')
