import { createHash } from 'node:crypto'
import { LayerEncryptor } from '../encryption/encrypt-layer.ts'
import type { Recipient } from '../encryption/recipient.ts'
import type { WrittenLayer } from './write-layer.ts'

/**
 * Encrypts a layer as it is written, leaf by leaf, under a fresh key: leaves stay where they are and as long as they are, and so do
 * all positions in annotations. Returns the layer with the digest of its ciphertext, and the annotations that open it.
 * Rejects as `LayerEncryptor.finish`; passes on what `leaves` throws.
 */
export async function* encryptLeaves(
  leaves: AsyncGenerator<Uint8Array, WrittenLayer>,
  { recipients, signal }: { recipients: readonly Recipient[]; signal: AbortSignal },
): AsyncGenerator<Uint8Array, WrittenLayer> {
  const encryptor = new LayerEncryptor()
  const hash = createHash('sha256')
  try {
    for (;;) {
      const step = await leaves.next()
      if (step.done === true) {
        const { digest: plainDigest, annotations, ...written } = step.value
        const opening = await encryptor.finish({ plainDigest, recipients, signal })
        const digest = `sha256:${hash.digest('hex')}`
        return { ...written, digest, annotations: { ...annotations, ...opening } }
      }
      const ciphertext = encryptor.push(step.value)
      hash.update(ciphertext)
      yield ciphertext
    }
  } finally {
    await leaves[Symbol.asyncDispose]()
  }
}
