import { expect, test } from 'vitest'
import { compressFrame } from '../../../snapshotter/publish/compress-frame.ts'
import { FrameThreads } from '../../../snapshotter/publish/frame-threads.ts'
import { failureOf } from '../../support/failure-of.ts'
import { randomContent } from '../../support/random-tree-tar.ts'
import { seeded } from '../../support/seeded.ts'

const pieces = Array.from({ length: 40 }, (_, index) => randomContent(seeded(index), index * 3000))

test.each([9, 19])(
  'threads make the frames of level %i that are made without them, in order, however many batches are under way',
  async (level) => {
    await using threads = new FrameThreads()
    const groups = pieces.map((_, index) => pieces.slice(index - (index % 3), index + 1))
    const batches = [groups.slice(0, 15), groups.slice(15, 16), groups.slice(16)]
    const frames = (
      await Promise.all(
        batches.map((batch) => threads.compress(batch.map((pieces) => ({ pieces, level })))),
      )
    ).flat()
    expect(
      frames.map((group) =>
        group.map(({ bytes, pieces: count }) => [count, Buffer.from(bytes).toString('hex')]),
      ),
    ).toEqual(
      groups.map((group) => [
        [group.length, Buffer.from(compressFrame(Buffer.concat(group), level)).toString('hex')],
      ]),
    )
  },
)

test('a thread that ends before its answer is a failure of whoever waits, and not a hang', async () => {
  const threads = new FrameThreads()
  const waiting = threads.compress([{ pieces: [randomContent(seeded(7), 8_000_000)], level: 9 }])
  const failed = failureOf(() => waiting)
  await threads[Symbol.asyncDispose]()
  expect(await failed).toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
})
