import type { KeyObject } from 'node:crypto'
import { encryptJwe } from './jwe.ts'
import type { WrappedKey } from './layer-encryption.ts'

/** Somebody who is to open a layer. */
export interface Recipient {
  /** As `WrappedKey` has it, for people: `jwe`, `provider.<name>`. */
  readonly kind: string
  /**
   * Wraps the private options of a layer, so that nobody else can read them. Rejects with LayerError UNAVAILABLE if a provider
   * does not do it, and with CANCELLED or the reason of `signal`.
   */
  wrap(options: Uint8Array, signal: AbortSignal): Promise<WrappedKey>
}

/** The holder of the private half of a public key (key-file.ts). */
export function jweRecipient(publicKey: KeyObject): Recipient {
  return {
    kind: 'jwe',
    wrap: async (options) => ({ kind: 'jwe', bytes: await encryptJwe(options, publicKey) }),
  }
}
