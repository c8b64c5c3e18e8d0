import { expect, test } from 'vitest'
import { ReadTrace, traceRead } from '../../../snapshotter/fuse/read-trace.ts'

test('reads of all threads come in the order in which they arrived, and none before somebody wants them', () => {
  const trace = new ReadTrace()
  const [one, other] = [trace.share(), trace.share()]
  traceRead(one, 1, 1, 1)
  trace.start()
  traceRead(one, 1001, 4096, 512)
  traceRead(other, 1002, 0, 100)
  traceRead(one, 1001, 0, 512)
  expect(trace.drain()).toMatchObject([
    { inode: 1001, offset: 4096, length: 512 },
    { inode: 1002, offset: 0, length: 100 },
    { inode: 1001, offset: 0, length: 512 },
  ])
  expect(trace.drain()).toEqual([])
  trace.stop()
  traceRead(one, 1, 1, 1)
  expect(trace.drain()).toEqual([])
})

test('of more reads than are kept, the latest are known and the others are counted', () => {
  const trace = new ReadTrace()
  const thread = trace.share()
  trace.start()
  for (let offset = 0; offset < 20_000; offset++) traceRead(thread, 1001, offset, 1)
  const reads = trace.drain()
  expect(reads.length + trace.lost).toBe(20_000)
  expect(reads.length).toBeGreaterThan(8_000)
  expect(reads.map(({ offset }) => offset)).toEqual(
    Array.from({ length: reads.length }, (_, index) => trace.lost + index),
  )
  traceRead(thread, 1001, 7, 1)
  expect(trace.drain()).toMatchObject([{ offset: 7 }])
})
