import { exporter, type ReadableStorage } from 'ipfs-unixfs-exporter'
import { CID } from 'multiformats/cid'
import type { BlockSource } from '../../snapshotter/block-source.ts'
import { PodError } from './parse-pod.ts'

/** How long a file of a few blocks may take, in ms: the client waits for its answer. */
const FILE_MS_MAX = 60_000

/**
 * A small file of IPFS, by its CID in binary. Rejects with PodError INVALID_ARGUMENT if that is none or of something else, RESOURCE_EXHAUSTED if it
 * has more than `bytesMax` bytes, UNAVAILABLE if it cannot be had.
 */
export async function readIpfsFile(
  binary: Uint8Array,
  bytesMax: number,
  blocks: BlockSource,
): Promise<Uint8Array> {
  const cid = cidOf(binary)
  const signal = AbortSignal.timeout(FILE_MS_MAX)
  const storage: ReadableStorage = {
    async *get(block) {
      yield await blocks.get(CID.asCID(block) ?? cid, { priority: 'foreground', signal })
    },
  }
  let chunks: Uint8Array[]
  try {
    const entry = await exporter(cid, storage, { signal })
    if (entry.type !== 'file' && entry.type !== 'raw') {
      throw new PodError('INVALID_ARGUMENT', `secret: ${cid.toString()} is not a file`)
    }
    chunks = []
    let bytes = 0
    for await (const chunk of entry.content({ signal })) {
      bytes += chunk.length
      if (bytes > bytesMax) {
        const message = `secret: ${cid.toString()} has more than ${bytesMax} bytes`
        throw new PodError('RESOURCE_EXHAUSTED', message)
      }
      chunks.push(chunk)
    }
  } catch (error) {
    if (error instanceof PodError) throw error
    const reason = error instanceof Error ? error.message : String(error)
    throw new PodError(
      'UNAVAILABLE',
      `secret: ${cid.toString()} cannot be fetched (${reason}); is the peer that has it running?`,
      { cid: cid.toString() },
      error,
    )
  }
  return Buffer.concat(chunks)
}

function cidOf(binary: Uint8Array): CID {
  try {
    return CID.decode(binary)
  } catch (cause) {
    throw new PodError('INVALID_ARGUMENT', 'secret: its cid is none in binary', {}, cause)
  }
}
