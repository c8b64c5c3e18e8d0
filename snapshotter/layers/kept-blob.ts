import { createHash } from 'node:crypto'
import { z } from 'zod'
import type { LayerBlob } from '../blobs/layer-blob.ts'
import { RegistryBlob, type RegistryBlobName } from '../blobs/registry-blob.ts'
import type { BlockSource } from '../block-source.ts'
import { UnixfsFile } from '../dag/unixfs-file.ts'
import { BlockError } from '../errors.ts'
import { parseJson } from '../oci/parse-json.ts'
import type { KeptEncryption } from './layer-keys.ts'

/** Marks what is kept of an encrypted blob, with its version. */
const MAGIC = Buffer.from('ENC1')
const CHECKSUM_BYTES = 32
const HEAD_BYTES = MAGIC.length + 4

const schema = z.object({
  blobDigest: z.string(),
  annotations: z.record(z.string(), z.string()),
  keyMark: z.string(),
})

/** What finds a blob again after a restart: its leaves, and if it is encrypted how to ask for its key. */
export type KeptBlob = {
  readonly blob: LayerBlob
  /** Of `blob`, which is the ciphertext then. */
  readonly encryption: KeptEncryption | undefined
}

/** The bytes of an encrypted blob's list of leaves with `encryption` before it; 12 bytes and a checksum more than both. */
export function keptEncryptedBlob(blob: LayerBlob, encryption: KeptEncryption): Uint8Array {
  const head = Buffer.alloc(HEAD_BYTES)
  const text = Buffer.from(JSON.stringify(encryption))
  MAGIC.copy(head)
  head.writeUInt32LE(text.length, MAGIC.length)
  return Buffer.concat([head, text, sha256(text), blob.toBytes()])
}

/** Where the bytes of blobs come from. */
export type BlobPlaces = {
  readonly blocks: BlockSource
  readonly inRegistry: (name: RegistryBlobName) => RegistryBlob
}

/** What `LayerBlob.toBytes` or `keptEncryptedBlob` wrote; asks nobody. Throws BlockError DATA_LOSS if the bytes are neither. */
export function readKeptBlob(bytes: Uint8Array, { blocks, inRegistry }: BlobPlaces): KeptBlob {
  if (RegistryBlob.isKept(bytes)) {
    return { blob: inRegistry(RegistryBlob.nameFromBytes(bytes)), encryption: undefined }
  }
  const body = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  if (!body.subarray(0, MAGIC.length).equals(MAGIC)) {
    return { blob: UnixfsFile.fromBytes(body, blocks), encryption: undefined }
  }
  const end = HEAD_BYTES + (body.length < HEAD_BYTES ? 0 : body.readUInt32LE(MAGIC.length))
  const text = body.subarray(HEAD_BYTES, end)
  if (!body.subarray(end, end + CHECKSUM_BYTES).equals(sha256(text))) {
    throw new BlockError('DATA_LOSS', 'what is kept of an encrypted layer is damaged')
  }
  return {
    blob: UnixfsFile.fromBytes(body.subarray(end + CHECKSUM_BYTES), blocks),
    encryption: parseJson(text, schema, 'what is kept of an encrypted layer'),
  }
}

function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest()
}
