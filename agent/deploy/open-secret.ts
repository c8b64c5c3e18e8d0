import { createDecipheriv } from 'node:crypto'
import { z } from 'zod'
import { PodError } from './parse-pod.ts'

const NONCE_BYTES = 12
const TAG_BYTES = 16

/** A JSON Web Key of the existing clients: 32 bytes of an octet sequence (RFC 7518, 6.4). */
const keySchema = z.object({
  kty: z.literal('oct'),
  k: z.string().regex(/^[A-Za-z0-9_-]{43}$/),
})

/**
 * Opens what the existing clients seal: nonce of 12 bytes, AES-256-GCM ciphertext, tag of 16; no additional data. Throws PodError INVALID_ARGUMENT
 * for a key of another kind, DATA_LOSS for what was changed or sealed by another key.
 */
export function openSealed(sealed: Uint8Array, jwk: Uint8Array): Uint8Array {
  const key = keyOf(jwk)
  if (sealed.length < NONCE_BYTES + TAG_BYTES) {
    throw new PodError('DATA_LOSS', `secret: has ${sealed.length} bytes, too few to be sealed`)
  }
  const decipher = createDecipheriv('aes-256-gcm', key, sealed.subarray(0, NONCE_BYTES))
  decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES))
  try {
    const opened = decipher.update(sealed.subarray(NONCE_BYTES, sealed.length - TAG_BYTES))
    return Buffer.concat([opened, decipher.final()])
  } catch {
    throw new PodError(
      'DATA_LOSS',
      'secret: its key does not open it, or it was changed on its way',
    )
  }
}

function keyOf(jwk: Uint8Array): Buffer {
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(jwk).toString('utf8'))
  } catch {
    // Said below; not the error itself, which quotes the key.
  }
  const parsed = keySchema.safeParse(value)
  if (parsed.success) return Buffer.from(parsed.data.k, 'base64url')
  throw new PodError(
    'INVALID_ARGUMENT',
    'secret: its key must be a JSON Web Key of kind oct with 32 bytes',
  )
}
