import { CodedError } from '../errors.ts'
import type { KeyUnwrapper } from './key-unwrapper.ts'
import type { WrappedKey } from './layer-encryption.ts'

/** Several unwrappers as one, asked in their order: the nearest first. */
export class KeyUnwrappers implements KeyUnwrapper {
  readonly #unwrappers: readonly KeyUnwrapper[]

  constructor(unwrappers: readonly KeyUnwrapper[]) {
    this.#unwrappers = unwrappers
  }

  /** As KeyUnwrapper. One that fails is passed over as long as another one knows; else its failure is that of all. */
  async unwrap(
    wrapped: WrappedKey,
    layer: string,
    signal: AbortSignal,
  ): Promise<Uint8Array | undefined> {
    let failure: CodedError | undefined
    for (const unwrapper of this.#unwrappers) {
      try {
        const opened = await unwrapper.unwrap(wrapped, layer, signal)
        if (opened !== undefined) return opened
      } catch (error) {
        if (signal.aborted || !(error instanceof CodedError)) throw error
        failure ??= error
      }
    }
    if (failure !== undefined) throw failure
    return undefined
  }
}
