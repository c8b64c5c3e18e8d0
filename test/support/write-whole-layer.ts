import type { WriteLayerOptions, WrittenLayer } from '../../snapshotter/publish/write-layer.ts'
import { writeLayer } from '../../snapshotter/publish/write-layer.ts'

/** A layer as `ipdr push` writes it, in memory: its leaves, and all of them as one blob. */
export async function writeWholeLayer(
  tar: Uint8Array,
  pieceBytes: () => number = () => 65_536,
  options: Pick<WriteLayerOptions, 'compact' | 'startReads'> = {},
): Promise<{ written: WrittenLayer; leaves: Uint8Array[]; blob: Buffer }> {
  const pieces = async function* (): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < tar.length; ) {
      const bytes = pieceBytes()
      // A copy that is spoilt afterwards: the writer must not keep what it was lent.
      const lent = Uint8Array.from(tar.subarray(at, at + bytes))
      yield lent
      lent.fill(0xee)
      at += bytes
    }
  }
  const leaves: Uint8Array[] = []
  const writing = writeLayer(pieces(), { signal: new AbortController().signal, ...options })
  for (;;) {
    const step = await writing.next()
    if (step.done === true) return { written: step.value, leaves, blob: Buffer.concat(leaves) }
    leaves.push(step.value)
  }
}
