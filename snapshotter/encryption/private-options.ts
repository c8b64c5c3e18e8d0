import { z } from 'zod'
import { LayerError } from '../errors.ts'
import { fromBase64, toBase64 } from './base64.ts'
import { LayerKey } from './layer-cipher.ts'

/** What a recipient unwraps (ocicrypt, blockcipher/blockcipher.go: PrivateLayerBlockCipherOptions). */
const schema = z.object({
  symkey: z.string(),
  digest: z.string().max(256),
  cipheroptions: z.object({ nonce: z.string() }),
})

/** What opens a layer, and the digest of the blob that it had before it was encrypted. */
export type PrivateOptions = { readonly key: LayerKey; readonly plainDigest: string }

/**
 * Reads what was unwrapped for `layer`. Throws LayerError INVALID_ARGUMENT; neither the sentence nor a cause quotes what was
 * read, since it is a key.
 */
export function parsePrivateOptions(bytes: Uint8Array, layer: string): PrivateOptions {
  const parsed = schema.safeParse(jsonOf(bytes))
  const key = parsed.success ? fromBase64(parsed.data.symkey) : undefined
  const nonce = parsed.success ? fromBase64(parsed.data.cipheroptions.nonce) : undefined
  if (!parsed.success || key === undefined || nonce === undefined) {
    throw new LayerError(
      'INVALID_ARGUMENT',
      `layer ${layer}: what its key was wrapped in is not {symkey, digest, cipheroptions: {nonce}} as ocicrypt writes it`,
    )
  }
  return { key: new LayerKey({ key, nonce }), plainDigest: parsed.data.digest }
}

/** The bytes to wrap for each recipient. */
export function privateOptionsBytes({ key, plainDigest }: PrivateOptions): Uint8Array {
  const revealed = key.reveal()
  return Buffer.from(
    JSON.stringify({
      symkey: toBase64(revealed.key),
      digest: plainDigest,
      cipheroptions: { nonce: toBase64(revealed.nonce) },
    }),
  )
}

function jsonOf(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch {
    return undefined
  }
}
