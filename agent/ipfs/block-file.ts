import { closeSync, fstatSync, open, read } from 'node:fs'
import { promisify } from 'node:util'
import type { BlockMemory } from '../../snapshotter/block-source.ts'
import { orUndefinedIfGone } from '../../snapshotter/or-undefined-if-gone.ts'
import { BLOCK_BYTES_MAX } from './block-provider.ts'

const openFile = promisify(open)
const readFile = promisify(read)

/**
 * A file that holds a block, whole, in `memory` if that is given; undefined if there is none. Rejects with what the disk says. It waits for
 * the disk twice, where readFile does four times, which was more than a third of what serving a block cost (test/bench/README.md).
 */
export async function readBlockFile(
  path: string,
  memory?: BlockMemory,
): Promise<Uint8Array | undefined> {
  const fd = await orUndefinedIfGone(openFile(path, 'r'))
  if (fd === undefined) return undefined
  try {
    // More than a block may have is no block: one byte more is enough for its check to say so.
    const size = Math.min(fstatSync(fd).size, BLOCK_BYTES_MAX + 1)
    const block = memory?.take(size) ?? Buffer.allocUnsafeSlow(size)
    const { bytesRead } = await readFile(fd, block, 0, size, 0)
    return block.subarray(0, bytesRead)
  } finally {
    closeSync(fd)
  }
}
