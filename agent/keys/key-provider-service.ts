import type { KeyObject } from 'node:crypto'
import { implement, type Service } from '../../proto/contract.ts'
import { keyProviderContract } from '../../proto/load.ts'
import { encryptGeneralJwe, encryptJwe, RECIPIENTS_MAX } from '../../snapshotter/encryption/jwe.ts'
import { KeyError } from '../../snapshotter/encryption/key-file.ts'
import {
  parseUnwrapInput,
  parseWrapInput,
  unwrapOutput,
  wrapOutput,
} from '../../snapshotter/encryption/key-provider-protocol.ts'
import type { KeyDirectory } from './key-directory.ts'
import { KEY_PROVIDER_NAME } from './key-provider-name.ts'
import { readPublicKey } from './read-public-key.ts'

/** Paths of public keys by the names under which they are asked for. */
export type WrapKeys = Readonly<Record<string, string>>

/** Names that an error lists. 16: a screen's width or two. */
const NAMES_SHOWN_MAX = 16

/**
 * keyprovider.KeyProviderService over the private keys of a directory: opens what was wrapped for one of them, and wraps for their
 * public halves and for `wrapKeys`. Errors name keys and files, never what they hold.
 */
export function keyProviderService(
  { wrapKeys }: { readonly wrapKeys: WrapKeys },
  { keys }: { readonly keys: KeyDirectory },
): Service {
  return implement(keyProviderContract(), {
    async WrapKey({ json }, { signal }) {
      const { parameters, options } = parseWrapInput(json, KEY_PROVIDER_NAME)
      const recipients = await recipientsOf(parameters, { wrapKeys, keys, signal })
      const [only] = recipients
      const isOne = recipients.length === 1 && only !== undefined
      const wrapped = await (isOne
        ? encryptJwe(options, only)
        : encryptGeneralJwe(options, recipients))
      return { json: Buffer.from(wrapOutput(wrapped)) }
    },

    async UnWrapKey({ json }, { signal }) {
      const bytes = parseUnwrapInput(json)
      const wrapped = { kind: 'provider', provider: KEY_PROVIDER_NAME, bytes } as const
      const options = await keys.unwrap(wrapped, 'of a caller of the key provider', signal)
      if (options !== undefined) return { json: Buffer.from(unwrapOutput(options)) }
      throw new KeyError(
        'PERMISSION_DENIED',
        'no private key of this agent opens what was wrapped: put that of one of its recipients into decryption.keysDir',
      )
    },
  })
}

type Places = {
  readonly wrapKeys: WrapKeys
  readonly keys: KeyDirectory
  readonly signal: AbortSignal
}

/** The keys that `parameters` name. Rejects with KeyError: INVALID_ARGUMENT if there are none, NOT_FOUND if there is no such key. */
async function recipientsOf(
  parameters: readonly string[],
  { wrapKeys, keys, signal }: Places,
): Promise<KeyObject[]> {
  if (parameters.length === 0 || parameters.length > RECIPIENTS_MAX) {
    throw new KeyError(
      'INVALID_ARGUMENT',
      `a key is wrapped for 1 to ${RECIPIENTS_MAX} recipients, not ${parameters.length}: name each as provider:${KEY_PROVIDER_NAME}:<key>`,
    )
  }
  const { keys: held } = await keys.keys(signal)
  const recipients: KeyObject[] = []
  for (const parameter of parameters) {
    const path = Object.hasOwn(wrapKeys, parameter) ? wrapKeys[parameter] : undefined
    if (path !== undefined) recipients.push(await readPublicKey(path))
    else {
      const { publicKey } =
        held.find(({ name }) => name === parameter || stemOf(name) === parameter) ?? {}
      if (publicKey === undefined) {
        const names = [...Object.keys(wrapKeys), ...held.map(({ name }) => stemOf(name))]
        throw unknownKey(parameter, names)
      }
      recipients.push(publicKey)
    }
  }
  return recipients
}

/** `alice` of `alice.pem` and `alice.jwk`. */
function stemOf(name: string): string {
  return name.replace(/\.(?:pem|jwk)$/, '')
}

function unknownKey(parameter: string, names: readonly string[]): KeyError {
  const shown = names.slice(0, NAMES_SHOWN_MAX).join(', ')
  const more = names.length > NAMES_SHOWN_MAX ? ` and ${names.length - NAMES_SHOWN_MAX} more` : ''
  return new KeyError(
    'NOT_FOUND',
    `this agent has no key ${JSON.stringify(parameter.slice(0, 64))} to wrap for; it has ${shown === '' ? 'none' : shown}${more}`,
  )
}
