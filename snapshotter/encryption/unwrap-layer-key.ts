import { CodedError, LayerError } from '../errors.ts'
import type { KeyUnwrapper } from './key-unwrapper.ts'
import type { LayerEncryption } from './layer-encryption.ts'
import { type PrivateOptions, parsePrivateOptions } from './private-options.ts'

/**
 * Opens a layer's key with the first wrapped copy that `unwrapper` can open. Rejects with LayerError PERMISSION_DENIED if it
 * opens none, naming the kinds of recipients and what to configure; INVALID_ARGUMENT if what was wrapped is malformed;
 * with the unwrapper's own error if it opens none and one of them could not be tried.
 */
export async function unwrapLayerKey(
  { wrapped, recipientKinds }: LayerEncryption,
  unwrapper: KeyUnwrapper,
  layer: string,
  signal: AbortSignal,
): Promise<PrivateOptions> {
  let failure: CodedError | undefined
  for (const each of wrapped) {
    try {
      const opened = await unwrapper.unwrap(each, layer, signal)
      if (opened !== undefined) return parsePrivateOptions(opened, layer)
    } catch (error) {
      // A provider that is down must not keep a layer from a recipient whose key is here.
      if (signal.aborted || !(error instanceof CodedError)) throw error
      failure ??= error
    }
  }
  if (failure !== undefined) throw failure
  throw new LayerError(
    'PERMISSION_DENIED',
    `layer ${layer} is encrypted for ${recipientKinds.join(', ')}, and no key of this node opens it: put the private key of one of its recipients into the directory decryption.keysDir, or configure its key provider`,
    { layer },
  )
}
