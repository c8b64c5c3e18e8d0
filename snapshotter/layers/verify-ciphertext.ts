import { createHash } from 'node:crypto'
import type { LayerBlob } from '../blobs/layer-blob.ts'
import type { ByteRange } from '../byte-range.ts'
import { parseDigest } from '../oci/digest.ts'
import { verifyBlock } from '../oci/verify-block.ts'
import type { CiphertextFile } from './ciphertext-file.ts'
import type { OpenedLayer } from './layer-keys.ts'

/** The multicodec of leaves that are their content and nothing else. */
const RAW = 0x55

type ToCheck = {
  readonly kept: CiphertextFile
  readonly opened: OpenedLayer
  readonly blobDigest: string
}

/**
 * Checks all of an encrypted blob: its digest, and the HMAC that only who has its key can make. What `kept` lost is fetched
 * again. The sentence of what is wrong, undefined if nothing is; rejects with BlockError if bytes cannot be had.
 */
export async function verifyCiphertext(
  blob: LayerBlob,
  { kept, opened, blobDigest }: ToCheck,
  signal: AbortSignal,
): Promise<string | undefined> {
  const { algorithm } = parseDigest(blobDigest)
  const [hash, hmac] = [createHash(algorithm), opened.key.hmac()]
  for (let leaf = 0; leaf + 1 < blob.leafStarts.length; leaf++) {
    const range = { start: blob.leafStarts[leaf] ?? 0, end: blob.leafStarts[leaf + 1] ?? 0 }
    const bytes =
      (await keptLeaf(blob, range, kept)) ??
      (await blob.readRange(range, { priority: 'background', signal }))
    hash.update(bytes)
    hmac.update(bytes)
  }
  const digest = `${algorithm}:${hash.digest('hex')}`
  if (digest !== blobDigest) return `its ciphertext has the digest ${digest}`
  if (!hmac.matches(opened.hmac)) {
    return 'its ciphertext has another HMAC than its manifest says: whoever encrypted it did not write this'
  }
  return undefined
}

/** A leaf from this node's disk, if it is still what its CID says. */
async function keptLeaf(
  blob: LayerBlob,
  range: ByteRange,
  kept: CiphertextFile,
): Promise<Uint8Array | undefined> {
  const cid = blob.leafOf(range)
  if (cid === undefined || cid.code !== RAW) return undefined
  const bytes = await kept.read(range.start, range.end - range.start)
  try {
    verifyBlock(cid, bytes)
    return bytes
  } catch {
    return undefined
  }
}
