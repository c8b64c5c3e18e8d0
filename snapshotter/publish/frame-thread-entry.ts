/** What a frame thread runs: see frame-threads.ts. */
import { parentPort } from 'node:worker_threads'
import { compressGroup, type GroupFrame } from './compress-frame.ts'
import type { Batch, BatchFrames } from './frame-threads.ts'

parentPort?.on('message', ({ id, bytes, groups }: Batch) => {
  const frames: GroupFrame[][] = []
  let start = 0
  for (const { lengths, level } of groups) {
    const end = lengths.reduce((sum, length) => sum + length, start)
    frames.push(compressGroup(bytes.subarray(start, end), lengths, level))
    start = end
  }
  const joined = Uint8Array.from(Buffer.concat(frames.flat().map((frame) => frame.bytes)))
  const reply: BatchFrames = {
    id,
    bytes: joined,
    groups: frames.map((of) =>
      of.map((frame) => ({ length: frame.bytes.length, pieces: frame.pieces })),
    ),
  }
  parentPort?.postMessage(reply, [joined.buffer])
})
