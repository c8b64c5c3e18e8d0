import { z } from 'zod'
import { LayerError } from '../errors.ts'
import { parseJson } from '../oci/parse-json.ts'
import { fromBase64, toBase64 } from './base64.ts'
import { LAYER_CIPHER, LAYER_HMAC_BYTES } from './layer-cipher.ts'

const PREFIX = 'org.opencontainers.image.enc.'
const PUBLIC_OPTIONS = `${PREFIX}pubopts`
const KEYS = `${PREFIX}keys.`
const PROVIDER = 'provider.'

/** What a media type ends with when its blob is encrypted (ocicrypt, spec/spec.go). */
export const ENCRYPTED_SUFFIX = '+encrypted'

/** Characters of one annotation. 64 KiB: 40 recipients with RSA keys of 4096 bits, at 1.5 KiB each. */
const ANNOTATION_CHARS_MAX = 64 * 1024

/** Wrapped keys that are tried for one layer. 64: with as many private keys, 4,096 attempts of about 1 ms. */
export const WRAPPED_KEYS_MAX = 64

/** One wrapped copy of a layer's private options, for recipients of one kind. */
export type WrappedKey =
  | { readonly kind: 'jwe'; readonly bytes: Uint8Array }
  | { readonly kind: 'provider'; readonly provider: string; readonly bytes: Uint8Array }

/** What the annotations of an encrypted layer say (ocicrypt, README.md, "Encrypted layers"). */
export type LayerEncryption = {
  readonly wrapped: readonly WrappedKey[]
  /** Kinds of recipients, for people: `jwe`, `provider.<name>`, and `pgp`, `pkcs7`, `pkcs11`, which are not opened here. */
  readonly recipientKinds: readonly string[]
  /** HMAC-SHA256 of the whole ciphertext. */
  readonly hmac: Uint8Array
}

/** Kinds of recipients that ocicrypt knows and this agent does not open. */
const UNSUPPORTED_KINDS = ['pgp', 'pkcs7', 'pkcs11'] as const

const base64Schema = z.string().transform((text, context) => {
  const bytes = fromBase64(text)
  if (bytes !== undefined) return bytes
  context.addIssue({ code: 'custom', message: 'is not base64' })
  return z.NEVER
})

const publicOptionsSchema = z.object({
  cipher: z.literal(LAYER_CIPHER),
  hmac: base64Schema.refine(({ length }) => length === LAYER_HMAC_BYTES, {
    error: `must have ${LAYER_HMAC_BYTES} bytes`,
  }),
  // Go writes an empty map as {} or null. ocicrypt would take a nonce from here unseen: nothing authenticates these.
  cipheroptions: z.record(z.string(), z.unknown()).nullish(),
})

/** Whether a blob of this media type is encrypted. */
export function isEncrypted(mediaType: string): boolean {
  return mediaType.endsWith(ENCRYPTED_SUFFIX)
}

/**
 * Reads what the annotations of encrypted layer `layer` say. Throws LayerError: INVALID_ARGUMENT if they are malformed or
 * would set the nonce where nothing authenticates it, UNIMPLEMENTED if only kinds of recipients that are not opened here
 * have a key, RESOURCE_EXHAUSTED beyond the limits.
 */
export function parseLayerEncryption(
  annotations: Readonly<Record<string, string>>,
  layer: string,
): LayerEncryption {
  const named = Object.entries(annotations)
    .filter(([name]) => name.startsWith(KEYS))
    .map(([name, value]) => ({ kind: name.slice(KEYS.length), name, value }))
  for (const { name, value } of [
    ...named,
    { name: PUBLIC_OPTIONS, value: annotations[PUBLIC_OPTIONS] ?? '' },
  ]) {
    if (value.length <= ANNOTATION_CHARS_MAX) continue
    throw new LayerError(
      'RESOURCE_EXHAUSTED',
      `layer ${layer}: annotation ${name.slice(0, 128)} has ${value.length} characters, ${ANNOTATION_CHARS_MAX} are read`,
    )
  }
  const wrapped = named.flatMap(({ kind, name, value }) => wrappedKeys(kind, name, value, layer))
  const recipientKinds = named.map(({ kind }) => kind.slice(0, 128))
  if (wrapped.length === 0) throw nothingToOpen(layer, recipientKinds)
  if (wrapped.length > WRAPPED_KEYS_MAX) {
    throw new LayerError(
      'RESOURCE_EXHAUSTED',
      `layer ${layer} has ${wrapped.length} wrapped keys, ${WRAPPED_KEYS_MAX} are read`,
    )
  }
  return { wrapped, recipientKinds, hmac: publicOptions(annotations[PUBLIC_OPTIONS], layer) }
}

/** Of a layer's annotations those that say how it was encrypted. */
export function encryptionAnnotations(
  annotations: Readonly<Record<string, string>>,
): Record<string, string> {
  const kept = Object.entries(annotations).filter(([name]) => name.startsWith(PREFIX))
  return Object.fromEntries(kept)
}

/**
 * The annotations of a layer that was encrypted: the way back from `parseLayerEncryption`. Throws LayerError RESOURCE_EXHAUSTED
 * if they are more than it reads, INVALID_ARGUMENT if there is no recipient at all.
 */
export function layerEncryptionAnnotations({
  wrapped,
  hmac,
}: Pick<LayerEncryption, 'wrapped' | 'hmac'>): Record<string, string> {
  if (wrapped.length === 0) {
    throw new LayerError('INVALID_ARGUMENT', 'a layer was to be encrypted for nobody')
  }
  const annotations: Record<string, string> = {
    [PUBLIC_OPTIONS]: toBase64(
      Buffer.from(
        JSON.stringify({ cipher: LAYER_CIPHER, hmac: toBase64(hmac), cipheroptions: {} }),
      ),
    ),
  }
  for (const key of wrapped) {
    const name = KEYS + (key.kind === 'jwe' ? 'jwe' : PROVIDER + key.provider)
    const others = annotations[name]
    annotations[name] = (others === undefined ? '' : `${others},`) + toBase64(key.bytes)
  }
  const [longest = ''] = Object.values(annotations).toSorted((a, b) => b.length - a.length)
  if (wrapped.length > WRAPPED_KEYS_MAX || longest.length > ANNOTATION_CHARS_MAX) {
    throw new LayerError(
      'RESOURCE_EXHAUSTED',
      `the keys of a layer for ${wrapped.length} recipients have up to ${longest.length} characters; nodes read ${WRAPPED_KEYS_MAX} keys, and ${ANNOTATION_CHARS_MAX} characters of one kind: encrypt for fewer recipients, or for EC keys`,
    )
  }
  return annotations
}

function wrappedKeys(kind: string, name: string, value: string, layer: string): WrappedKey[] {
  if (kind !== 'jwe' && !kind.startsWith(PROVIDER)) return []
  const provider = kind.slice(PROVIDER.length)
  return value.split(',').map((text) => {
    const bytes = fromBase64(text)
    if (bytes === undefined || bytes.length === 0) {
      throw new LayerError(
        'INVALID_ARGUMENT',
        `layer ${layer}: annotation ${name.slice(0, 128)} is not a list of base64`,
      )
    }
    return kind === 'jwe' ? { kind: 'jwe', bytes } : { kind: 'provider', provider, bytes }
  })
}

function publicOptions(written: string | undefined, layer: string): Uint8Array {
  const bytes = written === undefined ? undefined : fromBase64(written)
  const what = `layer ${layer}: annotation ${PUBLIC_OPTIONS}`
  if (bytes === undefined) {
    throw new LayerError(
      'INVALID_ARGUMENT',
      `${what} is ${written === undefined ? 'missing' : 'not base64'}, so nothing says how the layer was encrypted`,
    )
  }
  const { hmac, cipheroptions } = parseJson(bytes, publicOptionsSchema, what)
  const [option] = Object.keys(cipheroptions ?? {})
  if (option === undefined) return hmac
  throw new LayerError(
    'INVALID_ARGUMENT',
    `${what} sets the cipher option ${option.slice(0, 64)}, which anybody could have changed: options belong with the key`,
  )
}

function nothingToOpen(layer: string, kinds: readonly string[]): LayerError {
  if (kinds.length === 0) {
    return new LayerError(
      'INVALID_ARGUMENT',
      `layer ${layer} is said to be encrypted, but has no annotation ${KEYS}<kind> with a key`,
    )
  }
  const known = kinds.every((kind) => UNSUPPORTED_KINDS.some((each) => each === kind))
  return new LayerError(
    'UNIMPLEMENTED',
    `layer ${layer} is encrypted for ${kinds.join(', ')} only, ${known ? 'which are not' : 'none of which is'} opened here: encrypt it for a JWK or PEM key (jwe) or a key provider too`,
  )
}
