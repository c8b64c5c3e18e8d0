import { status } from '@grpc/grpc-js'
import { connectTo } from '../../proto/client.ts'
import { keyProviderContract } from '../../proto/load.ts'
import {
  KEY_PROVIDER_MESSAGE_BYTES_MAX,
  parseUnwrapOutput,
  parseWrapOutput,
  unwrapInput,
  wrapInput,
} from '../../snapshotter/encryption/key-provider-protocol.ts'
import type { KeyUnwrapper } from '../../snapshotter/encryption/key-unwrapper.ts'
import type { WrappedKey } from '../../snapshotter/encryption/layer-encryption.ts'
import type { Recipient } from '../../snapshotter/encryption/recipient.ts'
import { LayerError } from '../../snapshotter/errors.ts'
import type { KeyProviderPlaces } from './key-provider-config.ts'
import { askKeyProviderProgram } from './key-provider-program.ts'

/** How long a provider may take for one key, in ms. 8 s: less than the 10 s that a layer waits for all of them, so that its name is told. */
const ANSWER_DEADLINE_MS = 8_000

type Method = 'WrapKey' | 'UnWrapKey'

/** Asks key providers, over gRPC or by running their programs; each call stands for itself, so that one may be restarted. */
export class KeyProviderClient implements KeyUnwrapper {
  readonly #places: KeyProviderPlaces
  readonly #deadlineMs: number

  constructor(
    places: KeyProviderPlaces,
    { deadlineMs = ANSWER_DEADLINE_MS }: { readonly deadlineMs?: number } = {},
  ) {
    this.#places = places
    this.#deadlineMs = deadlineMs
  }

  /**
   * As KeyUnwrapper: undefined for what no provider of the configuration wrapped. Rejects with LayerError: UNAVAILABLE if the provider
   * cannot be reached or does not answer in time, PERMISSION_DENIED if it refuses, FAILED_PRECONDITION if it cannot be used or its
   * answer is none. No sentence has its words: they might hold a key.
   */
  async unwrap(
    wrapped: WrappedKey,
    layer: string,
    signal: AbortSignal,
  ): Promise<Uint8Array | undefined> {
    if (wrapped.kind !== 'provider' || !this.#places.has(wrapped.provider)) return undefined
    const what = `key provider ${wrapped.provider}, asked for the key of layer ${layer},`
    const request = unwrapInput(wrapped.bytes)
    const answer = await this.#ask(wrapped.provider, 'UnWrapKey', request, { what, signal })
    return parseUnwrapOutput(answer) ?? noAnswer(what, 'keyunwrapresults: {optsdata}')
  }

  /**
   * Whoever provider `name` knows by `parameters`: its own words, such as the name of a key. Throws LayerError NOT_FOUND if the
   * configuration has no such provider; `wrap` rejects as `unwrap` does.
   */
  recipient(name: string, parameters: string): Recipient {
    if (!this.#places.has(name)) {
      const known = [...this.#places.keys()].join(', ')
      throw new LayerError(
        'NOT_FOUND',
        `there is no key provider ${name} in the configuration of key providers, which has ${known === '' ? 'none' : known}`,
      )
    }
    const what = `key provider ${name}, asked to wrap a layer's key,`
    return {
      kind: `provider.${name}`,
      wrap: async (options, signal) => {
        const request = wrapInput(name, { parameters: [parameters], options })
        const answer = await this.#ask(name, 'WrapKey', request, { what, signal })
        const bytes = parseWrapOutput(answer) ?? noAnswer(what, 'keywrapresults: {annotation}')
        return { kind: 'provider', provider: name, bytes }
      },
    }
  }

  async #ask(
    name: string,
    method: Method,
    request: Uint8Array,
    { what, signal }: { readonly what: string; readonly signal: AbortSignal },
  ): Promise<Uint8Array> {
    const place = this.#places.get(name)
    if (place === undefined) throw new RangeError(`no key provider ${name}`)
    if (place.kind === 'unusable') {
      throw new LayerError('FAILED_PRECONDITION', `${what} cannot be used: ${place.because}`)
    }
    const late = AbortSignal.timeout(this.#deadlineMs)
    const either = AbortSignal.any([signal, late])
    try {
      return place.kind === 'cmd'
        ? await askKeyProviderProgram(place, request, what, either)
        : await askByGrpc(place.target, method, request, { what, signal: either })
    } catch (error) {
      signal.throwIfAborted()
      if (!late.aborted) throw error
      throw new LayerError(
        'UNAVAILABLE',
        `${what} did not answer within ${this.#deadlineMs} ms: see whether it is stuck, then try again`,
      )
    }
  }
}

async function askByGrpc(
  target: string,
  method: Method,
  request: Uint8Array,
  { what, signal }: { readonly what: string; readonly signal: AbortSignal },
): Promise<Uint8Array> {
  const messageBytesMax = KEY_PROVIDER_MESSAGE_BYTES_MAX
  using client = connectTo(keyProviderContract(), { target, messageBytesMax })
  try {
    const { json } = await client.calls[method]({ json: request }, { signal })
    return json
  } catch (error) {
    signal.throwIfAborted()
    throw failureOf(error, target, what)
  }
}

function failureOf(error: unknown, target: string, what: string): LayerError {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  if (code === status.UNAVAILABLE) {
    const message = `${what} cannot be reached at ${target}: start it, or correct its address in the configuration of key providers`
    return new LayerError('UNAVAILABLE', message)
  }
  if (code === status.UNIMPLEMENTED) {
    const message = `${what} is none: whoever answers at ${target} does not know keyprovider.KeyProviderService`
    return new LayerError('FAILED_PRECONDITION', message)
  }
  if (code === status.RESOURCE_EXHAUSTED) {
    const message = `${what} answered with more than ${KEY_PROVIDER_MESSAGE_BYTES_MAX} bytes, or has too much to do: is a key provider at ${target}?`
    return new LayerError('RESOURCE_EXHAUSTED', message)
  }
  const message = `${what} refused (${typeof code === 'number' ? status[code] : 'UNKNOWN'}): what it logged says why`
  return new LayerError('PERMISSION_DENIED', message)
}

function noAnswer(what: string, expected: string): never {
  throw new LayerError(
    'FAILED_PRECONDITION',
    `${what} did not answer with {${expected}} as ocicrypt's protocol has it: see whether the configuration leads to a key provider`,
  )
}
