import { type KeyObject, randomBytes } from 'node:crypto'
import { encryptJwe } from './jwe.ts'
import { LAYER_KEY_BYTES, LAYER_NONCE_BYTES, type LayerHmac, LayerKey } from './layer-cipher.ts'
import { layerEncryptionAnnotations } from './layer-encryption.ts'
import { privateOptionsBytes } from './private-options.ts'

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

  /** Call once, after the last piece: the annotations with which each of `recipients` can open the layer. */
  async finish(options: {
    /** Digest of the blob before it was encrypted. */
    readonly plainDigest: string
    /** Public keys. */
    readonly recipients: readonly KeyObject[]
  }): Promise<Record<string, string>> {
    const content = privateOptionsBytes({ key: this.#key, plainDigest: options.plainDigest })
    const wrapped = await Promise.all(
      options.recipients.map(async (recipient) => ({
        kind: 'jwe' as const,
        bytes: await encryptJwe(content, recipient),
      })),
    )
    return layerEncryptionAnnotations({ wrapped, hmac: this.#hmac.digest() })
  }
}
