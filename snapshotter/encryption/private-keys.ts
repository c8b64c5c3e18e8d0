import type { KeyObject } from 'node:crypto'
import { decryptJwe } from './jwe.ts'
import type { KeyUnwrapper } from './key-unwrapper.ts'
import type { WrappedKey } from './layer-encryption.ts'

/** Private keys that are tried for a layer. 64: see `WRAPPED_KEYS_MAX`. */
export const PRIVATE_KEYS_MAX = 64

/** Opens what was wrapped for one of some private keys, the first `PRIVATE_KEYS_MAX` of them. */
export class PrivateKeys implements KeyUnwrapper {
  readonly #keys: readonly KeyObject[]

  constructor(keys: readonly KeyObject[]) {
    this.#keys = keys.slice(0, PRIVATE_KEYS_MAX)
  }

  async unwrap(wrapped: WrappedKey, layer: string): Promise<Uint8Array | undefined> {
    if (wrapped.kind !== 'jwe') return undefined
    for (const key of this.#keys) {
      const opened = await decryptJwe(wrapped.bytes, key, `the wrapped key of layer ${layer}`)
      if (opened !== undefined) return opened
    }
    return undefined
  }
}
