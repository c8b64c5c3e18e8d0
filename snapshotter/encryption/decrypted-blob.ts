import type { CID } from 'multiformats/cid'
import type { LayerBlob } from '../blobs/layer-blob.ts'
import type { BlockRequest } from '../block-source.ts'
import type { ByteRange } from '../byte-range.ts'
import type { LayerKey } from './layer-cipher.ts'

type Options = {
  /** Asked for at the first read: a layer that is all here needs no key. */
  readonly key: () => Promise<LayerKey>
  /** Told of all ciphertext that was fetched, verified, and read. Returns at once. */
  readonly onCiphertext?: (offset: number, ciphertext: Uint8Array) => void
  /** As `LayerBlob.toBytes`, which has to find the key again as well. */
  readonly stored: Uint8Array
}

/** An encrypted blob as the one that was encrypted: in counter mode each byte stays in its place. */
export class DecryptedBlob implements LayerBlob {
  /** The blob as it was published. */
  readonly encrypted: LayerBlob
  readonly #options: Options
  #key: Promise<LayerKey> | undefined

  constructor(encrypted: LayerBlob, options: Options) {
    this.encrypted = encrypted
    this.#options = options
  }

  get cid(): CID {
    return this.encrypted.cid
  }

  get size(): number {
    return this.encrypted.size
  }

  get leafStarts(): Float64Array {
    return this.encrypted.leafStarts
  }

  async readRange(range: ByteRange, request: BlockRequest): Promise<Uint8Array> {
    const key = await this.key()
    const ciphertext = await this.encrypted.readRange(range, request)
    this.#options.onCiphertext?.(range.start, ciphertext)
    return key.apply(range.start, ciphertext)
  }

  stream(range: ByteRange, request: BlockRequest): AsyncIterable<Uint8Array> {
    return this.decrypt(this.encrypted.stream(range, request), range.start)
  }

  /** The plaintext of ciphertext that comes in order, from byte `offset` of the blob on. */
  async *decrypt(
    ciphertext: AsyncIterable<Uint8Array>,
    offset: number,
  ): AsyncGenerator<Uint8Array, void> {
    const key = await this.key()
    let at = offset
    for await (const bytes of ciphertext) {
      yield key.apply(at, bytes)
      at += bytes.length
    }
  }

  /** Never any: what others have is found by what they fetched, and nobody may learn plaintext by naming its ciphertext. */
  leafOf(): undefined {
    return undefined
  }

  toBytes(): Uint8Array {
    return this.#options.stored
  }

  /** Rejects if no key opens it now; a later read asks again. */
  async key(): Promise<LayerKey> {
    this.#key ??= this.#options.key()
    try {
      return await this.#key
    } catch (error) {
      this.#key = undefined
      throw error
    }
  }
}
