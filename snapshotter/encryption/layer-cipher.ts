import { createDecipheriv, createHash, createHmac, type Hmac, timingSafeEqual } from 'node:crypto'
import { LayerError } from '../errors.ts'

/** The only layer cipher of ocicrypt (blockcipher/blockcipher.go). */
export const LAYER_CIPHER = 'AES_256_CTR_HMAC_SHA256'

/** Bytes of the key, which encrypts and authenticates alike (ocicrypt, blockcipher/blockcipher_aes_ctr.go). */
export const LAYER_KEY_BYTES = 32

/** Bytes of the nonce: the first counter block. */
export const LAYER_NONCE_BYTES = 16

/** Bytes of the HMAC-SHA256 over the whole ciphertext. */
export const LAYER_HMAC_BYTES = 32

/** Before what is hashed to `LayerKey.mark`, so that it is a digest of nothing else. */
const MARK = 'ipdr layer key\0'

const AES_BLOCK_BYTES = 16
const COUNTER_MODULUS = 1n << 128n

/** What opens one layer. Only ever in memory: `toString` and `toJSON` keep it out of logs and dumps of objects. */
export class LayerKey {
  readonly #key: Uint8Array
  readonly #nonce: Uint8Array

  /** Throws LayerError INVALID_ARGUMENT if key or nonce have another length than the cipher's. */
  constructor({ key, nonce }: { readonly key: Uint8Array; readonly nonce: Uint8Array }) {
    checkLength('key', key, LAYER_KEY_BYTES)
    checkLength('nonce', nonce, LAYER_NONCE_BYTES)
    this.#key = Uint8Array.from(key)
    this.#nonce = Uint8Array.from(nonce)
  }

  /**
   * Turns ciphertext that starts at byte `offset` of the blob into plaintext, or the other way round: in counter mode both
   * are the same, any range can be had alone, and neither is longer than the other.
   */
  apply(offset: number, bytes: Uint8Array): Uint8Array {
    const skipped = offset % AES_BLOCK_BYTES
    const blocks = BigInt((offset - skipped) / AES_BLOCK_BYTES)
    const cipher = createDecipheriv('aes-256-ctr', this.#key, this.#counter(blocks))
    cipher.update(new Uint8Array(skipped))
    return cipher.update(bytes)
  }

  /** Tells two keys apart and says nothing of either, 64 hex digits. */
  get mark(): string {
    return createHash('sha256').update(MARK).update(this.#key).update(this.#nonce).digest('hex')
  }

  /** Checks, or makes, the HMAC of the whole ciphertext. */
  hmac(): LayerHmac {
    return new LayerHmac(createHmac('sha256', this.#key))
  }

  /** Key and nonce, to be wrapped for a recipient and for nothing else. */
  reveal(): { readonly key: Uint8Array; readonly nonce: Uint8Array } {
    return { key: this.#key, nonce: this.#nonce }
  }

  toString(): string {
    return 'LayerKey(hidden)'
  }

  toJSON(): string {
    return this.toString()
  }

  /** The nonce plus `blocks`, as one big-endian number of 128 bits that wraps around (NIST SP 800-38A, B.1). */
  #counter(blocks: bigint): Uint8Array {
    const first = BigInt(`0x${Buffer.from(this.#nonce).toString('hex')}`)
    const counter = (first + blocks) % COUNTER_MODULUS
    return Buffer.from(counter.toString(16).padStart(2 * LAYER_NONCE_BYTES, '0'), 'hex')
  }
}

/** The HMAC of a ciphertext that comes in pieces, from its first byte to its last. */
export class LayerHmac {
  readonly #hmac: Hmac

  constructor(hmac: Hmac) {
    this.#hmac = hmac
  }

  update(ciphertext: Uint8Array): void {
    this.#hmac.update(ciphertext)
  }

  /** Call once, after the last piece. */
  digest(): Uint8Array {
    return this.#hmac.digest()
  }

  /** Call once, after the last piece: whether the ciphertext is the one that `expected` was made of. */
  matches(expected: Uint8Array): boolean {
    const actual = this.digest()
    return expected.length === actual.length && timingSafeEqual(expected, actual)
  }
}

function checkLength(what: string, bytes: Uint8Array, expected: number): void {
  if (bytes.length === expected) return
  throw new LayerError(
    'INVALID_ARGUMENT',
    `the ${what} of an encrypted layer has ${bytes.length} bytes, ${LAYER_CIPHER} takes ${expected}`,
  )
}
