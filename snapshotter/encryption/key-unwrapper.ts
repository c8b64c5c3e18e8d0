import type { WrappedKey } from './layer-encryption.ts'

/** Who may hold the key of a layer: a directory of private keys, a key provider elsewhere. */
export interface KeyUnwrapper {
  /**
   * What `wrapped` holds, the private options of `layer` (private-options.ts); undefined if it was wrapped for somebody else.
   * Rejects with a CodedError if that cannot be told, as when a provider is down (LayerError UNAVAILABLE) or a key file cannot
   * be used; the sentence says what to do. Another unwrapper may still know, so whoever has several asks all of them first.
   */
  unwrap(wrapped: WrappedKey, layer: string, signal: AbortSignal): Promise<Uint8Array | undefined>
}
