import { randomBytes } from 'node:crypto'
import { LAYER_KEY_BYTES, LAYER_NONCE_BYTES, type LayerHmac, LayerKey } from './layer-cipher.ts'
import { layerEncryptionAnnotations } from './layer-encryption.ts'
import { privateOptionsBytes } from './private-options.ts'
import type { Recipient } from './recipient.ts'

/** Encrypts one layer under a fresh key, piece by piece; no byte of the blob moves and none is added. */
export class LayerEncryptor {
  readonly #key: LayerKey
  readonly #hmac: LayerHmac
  #offset = 0

  constructor() {
    this.#key = new LayerKey({
      key: randomBytes(LAYER_KEY_BYTES),
      nonce: randomBytes(LAYER_NONCE_BYTES),
    })
    this.#hmac = this.#key.hmac()
  }

  /** The ciphertext of the next bytes of the blob. */
  push(plaintext: Uint8Array): Uint8Array {
    const ciphertext = this.#key.apply(this.#offset, plaintext)
    this.#offset += plaintext.length
    this.#hmac.update(ciphertext)
    return ciphertext
  }

  /**
   * Call once, after the last piece: the annotations with which each of `recipients` can open the layer. Rejects as
   * `Recipient.wrap` and `layerEncryptionAnnotations`.
   */
  async finish(options: {
    /** Digest of the blob before it was encrypted. */
    readonly plainDigest: string
    readonly recipients: readonly Recipient[]
    readonly signal: AbortSignal
  }): Promise<Record<string, string>> {
    const { plainDigest, recipients, signal } = options
    const content = privateOptionsBytes({ key: this.#key, plainDigest })
    const wrapped = await Promise.all(recipients.map((each) => each.wrap(content, signal)))
    return layerEncryptionAnnotations({ wrapped, hmac: this.#hmac.digest() })
  }
}
