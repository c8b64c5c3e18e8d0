import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { BlockError } from '../errors.ts'
import { inlineBlock } from '../oci/verify-block.ts'
import { BLOCK_BYTES_MAX } from './unixfs-node.ts'

/** One block: from the CID itself if it is inlined there, else from `blocks`. Rejects as BlockSource.get, and RESOURCE_EXHAUSTED. */
export async function readBlock(
  blocks: BlockSource,
  cid: CID,
  request: BlockRequest,
): Promise<Uint8Array> {
  const inline = inlineBlock(cid)
  if (inline !== undefined) return inline
  if (request.signal.aborted) throw abortedRead(cid, request.signal)
  const bytes = await blocks.get(cid, request)
  if (bytes.length <= BLOCK_BYTES_MAX) return bytes
  throw new BlockError(
    'RESOURCE_EXHAUSTED',
    `block ${cid.toString()} has ${bytes.length} bytes, a block may have ${BLOCK_BYTES_MAX}`,
    { cid: cid.toString(), bytes: bytes.length, bytesMax: BLOCK_BYTES_MAX },
  )
}

function abortedRead(cid: CID, { reason }: AbortSignal): BlockError {
  if (reason instanceof BlockError) return reason
  const late = reason instanceof Error && reason.name === 'TimeoutError'
  return new BlockError(
    late ? 'DEADLINE_EXCEEDED' : 'CANCELLED',
    `block ${cid.toString()} was not read: ${late ? 'the deadline had passed' : 'the read was cancelled'}`,
    { cid: cid.toString() },
    reason,
  )
}
