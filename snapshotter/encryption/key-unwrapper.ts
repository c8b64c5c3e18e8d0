import type { WrappedKey } from './layer-encryption.ts'

/** Opens wrapped keys of layers: a directory of private keys, a key provider. */
export interface KeyUnwrapper {
  /**
   * What was wrapped, undefined if it was not for a key of this one. `layer` names the layer in errors. Rejects with LayerError:
   * UNAVAILABLE if a provider cannot be asked, and as `decryptJwe`.
   */
  unwrap(wrapped: WrappedKey, layer: string, signal: AbortSignal): Promise<Uint8Array | undefined>
}
