import { z } from 'zod'
import type { RegistryBlobName } from '../blobs/registry-blob.ts'
import { BlockError } from '../errors.ts'
import { isDigest } from '../oci/digest.ts'
import { parseJson } from '../oci/parse-json.ts'
import type { RegistryPlace } from '../oci/registry-reference.ts'

/** Marks what is kept, with its version. */
const MAGIC = Buffer.from('PLC1')

const schema = z.object({
  digest: z.string(),
  size: z.number().int().nonnegative(),
  host: z.string(),
  repository: z.string(),
})

/** A blob of a layer that is not known here, and a repository of an image that has it. */
export type BlobInRegistry = RegistryBlobName & RegistryPlace

/** What is kept of such a blob. */
export function keptBlobInRegistry({ digest, size, host, repository }: BlobInRegistry): Uint8Array {
  return Buffer.concat([MAGIC, Buffer.from(JSON.stringify({ digest, size, host, repository }))])
}

/** What `keptBlobInRegistry` wrote; undefined if it was something else. Throws BlockError DATA_LOSS if it is damaged. */
export function readBlobInRegistry(bytes: Uint8Array): BlobInRegistry | undefined {
  if (!MAGIC.equals(bytes.subarray(0, MAGIC.length))) return undefined
  const what = 'what is kept of a blob in a registry'
  const { digest, ...rest } = parseJson(Buffer.from(bytes.subarray(MAGIC.length)), schema, what)
  if (isDigest(digest)) return { digest, ...rest }
  throw new BlockError('DATA_LOSS', `${what} is damaged`)
}
