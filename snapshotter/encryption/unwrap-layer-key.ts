import type { KeyObject } from 'node:crypto'
import { LayerError } from '../errors.ts'
import { decryptJwe } from './jwe.ts'
import type { LayerEncryption } from './layer-encryption.ts'
import { type PrivateOptions, parsePrivateOptions } from './private-options.ts'

/** Private keys that are tried for a layer. 64: see `WRAPPED_KEYS_MAX`. */
export const PRIVATE_KEYS_MAX = 64

/**
 * Opens a layer's key with the first private key that fits. Rejects with LayerError PERMISSION_DENIED if none does, naming the
 * kinds of recipients and what to configure; INVALID_ARGUMENT if what was wrapped is malformed.
 */
export async function unwrapLayerKey(
  { wrapped, recipientKinds }: LayerEncryption,
  keys: readonly KeyObject[],
  layer: string,
): Promise<PrivateOptions> {
  for (const each of wrapped) {
    if (each.kind !== 'jwe') continue
    for (const key of keys.slice(0, PRIVATE_KEYS_MAX)) {
      const opened = await decryptJwe(each.bytes, key, `the wrapped key of layer ${layer}`)
      if (opened !== undefined) return parsePrivateOptions(opened, layer)
    }
  }
  const tried =
    keys.length === 0
      ? 'there is no private key here'
      : `none of ${keys.length} private keys opens it`
  throw new LayerError(
    'PERMISSION_DENIED',
    `layer ${layer} is encrypted for ${recipientKinds.join(', ')}, and ${tried}: configure the private key of one of its recipients`,
    { layer },
  )
}
