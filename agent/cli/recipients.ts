import type { PushEncryption } from '../../snapshotter/publish.ts'
import type { KeyProviderClient } from '../keys/key-provider-client.ts'
import { EXIT_CODES } from './exit-codes.ts'
import { CommandFailure } from './failure.ts'

type Recipient = PushEncryption['recipients'][number]

/** Options of the commands that encrypt. */
export const ENCRYPTION_OPTIONS = {
  'encrypt-to': {
    type: 'string',
    array: true,
    requiresArg: true,
    default: [] as string[],
    describe:
      'Encrypt layers so that this recipient can open them: a public key (PEM or JWK), jwe:FILE, or provider:NAME:PARAMETERS; may be repeated',
    valueName: 'RECIPIENT',
  },
  'encrypt-layer': {
    type: 'number',
    array: true,
    requiresArg: true,
    default: [] as number[],
    describe: 'Encrypt this layer and not all: 0 is the lowest, -1 the highest; may be repeated',
    valueName: 'N',
  },
  'key-providers': {
    type: 'string',
    requiresArg: true,
    describe: 'Configuration of the key providers for provider:NAME, as ocicrypt has it',
    valueName: 'FILE',
    env: 'OCICRYPT_KEYPROVIDER_CONFIG',
  },
} as const

type EncryptionValues = {
  readonly 'encrypt-to': readonly string[]
  readonly 'encrypt-layer': readonly number[]
  readonly 'key-providers': string | undefined
}

/**
 * What to encrypt for whom; undefined: nothing. Rejects with CommandFailure, and as `readPublicKey`, `readKeyProviderConfig` and
 * `KeyProviderClient.recipient`.
 */
export async function encryptionOf(values: EncryptionValues): Promise<PushEncryption | undefined> {
  const { 'encrypt-to': names, 'encrypt-layer': layers, 'key-providers': path } = values
  if (names.length === 0) {
    if (layers.length === 0) return undefined
    throw new CommandFailure(
      EXIT_CODES.usage,
      '--encrypt-layer says what to encrypt, and nothing says for whom',
      'Name a recipient: --encrypt-to FILE, with a public key in it.',
    )
  }
  const wrong = layers.find((layer) => !Number.isInteger(layer))
  if (wrong !== undefined) {
    throw new CommandFailure(EXIT_CODES.usage, '--encrypt-layer takes a whole number, like 0 or -1')
  }
  const recipients: Recipient[] = []
  let providers: KeyProviderClient | undefined
  for (const name of names) {
    const [, scheme = 'jwe', rest = name] =
      /^(jwe|provider|pgp|pkcs7|pkcs11):(.*)$/s.exec(name) ?? []
    if (scheme === 'jwe') recipients.push(await jweOf(rest))
    else if (scheme === 'provider') {
      providers ??= await openProviders(path)
      recipients.push(providerOf(rest, providers))
    } else {
      throw new CommandFailure(
        EXIT_CODES.usage,
        `${scheme}: recipients are not encrypted for here`,
        'Give a public key in PEM or JWK (jwe:FILE) or a key provider (provider:NAME:PARAMETERS).',
      )
    }
  }
  return { recipients, ...(layers.length === 0 ? {} : { layers }) }
}

async function jweOf(path: string): Promise<Recipient> {
  const { readPublicKey } = await import('../keys/read-public-key.ts')
  const { jweRecipient } = await import('../../snapshotter/encryption/recipient.ts')
  return jweRecipient(await readPublicKey(path))
}

async function openProviders(path: string | undefined): Promise<KeyProviderClient> {
  if (path === undefined) {
    throw new CommandFailure(
      EXIT_CODES.usage,
      'nothing says where key providers are',
      'Name their configuration with --key-providers, or in OCICRYPT_KEYPROVIDER_CONFIG.',
    )
  }
  const { readKeyProviderConfig } = await import('../keys/key-provider-config.ts')
  const { KeyProviderClient } = await import('../keys/key-provider-client.ts')
  return new KeyProviderClient(await readKeyProviderConfig(path))
}

/** `<name>:<parameters>` of a provider; the parameters are its own business, and may be none. */
function providerOf(text: string, providers: KeyProviderClient): Recipient {
  const [, name = '', parameters = ''] = /^([^:]*):?(.*)$/s.exec(text) ?? []
  return providers.recipient(name, parameters)
}
