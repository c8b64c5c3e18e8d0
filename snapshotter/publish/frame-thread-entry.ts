/** What a frame thread runs: see frame-threads.ts. */
import { parentPort } from 'node:worker_threads'
import { compressFrame } from './compress-frame.ts'
import type { Batch, BatchFrames } from './frame-threads.ts'

parentPort?.on('message', ({ id, bytes, lengths }: Batch) => {
  const frames: Uint8Array[] = []
  let start = 0
  for (const length of lengths) {
    frames.push(compressFrame(bytes.subarray(start, start + length)))
    start += length
  }
  const joined = Uint8Array.from(Buffer.concat(frames))
  const reply: BatchFrames = { id, bytes: joined, lengths: frames.map((frame) => frame.length) }
  parentPort?.postMessage(reply, [joined.buffer])
})
