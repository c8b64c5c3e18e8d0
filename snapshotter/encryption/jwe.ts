import type { KeyObject } from 'node:crypto'
import {
  errors,
  FlattenedEncrypt,
  type FlattenedJWE,
  flattenedDecrypt,
  GeneralEncrypt,
  type GeneralJWE,
  generalDecrypt,
} from 'jose'
import { LayerError } from '../errors.ts'

/** ocicrypt, keywrap/jwe/keywrapper_jwe.go: RSA keys with RSA-OAEP, all others with ECDH-ES+A256KW, content A256GCM. */
const CONTENT_ENCRYPTION = 'A256GCM'
const EC_ALGORITHM = 'ECDH-ES+A256KW'
/** ocicrypt writes the first; the second is what other writers of JWE prefer. */
const RSA_ALGORITHMS = ['RSA-OAEP', 'RSA-OAEP-256']

/** Most that a compressed JWE may expand to. 4 KiB: the private options have 200 bytes. */
const CONTENT_BYTES_MAX = 4096

/** Recipients of one JWE that are tried. 64: as many as layers may have wrapped keys. */
export const RECIPIENTS_MAX = 64

/** Encrypts `content` for the holder of the private half of `key`, as JWE in flattened JSON (RFC 7516, 7.2.2). */
export async function encryptJwe(content: Uint8Array, key: KeyObject): Promise<Uint8Array> {
  const alg = algorithmFor(key)
  const jwe = await new FlattenedEncrypt(content)
    .setProtectedHeader({ alg, enc: CONTENT_ENCRYPTION })
    .encrypt(key)
  return Buffer.from(JSON.stringify(jwe))
}

/** The same for the holders of several keys, in general JSON (RFC 7516, 7.2.1). Throws RangeError beyond `RECIPIENTS_MAX`. */
export async function encryptGeneralJwe(
  content: Uint8Array,
  keys: readonly KeyObject[],
): Promise<Uint8Array> {
  if (keys.length > RECIPIENTS_MAX) {
    throw new RangeError(`a JWE for ${keys.length} recipients, ${RECIPIENTS_MAX} are read`)
  }
  const encrypt = new GeneralEncrypt(content).setProtectedHeader({ enc: CONTENT_ENCRYPTION })
  for (const key of keys) {
    encrypt.addRecipient(key).setUnprotectedHeader({ alg: algorithmFor(key) })
  }
  return Buffer.from(JSON.stringify(await encrypt.encrypt()))
}

/**
 * What a JWE in JSON holds, if `key` opens it; undefined if it was made for other keys. Throws LayerError INVALID_ARGUMENT if
 * it is no JWE, RESOURCE_EXHAUSTED beyond the limits. `what` names it.
 */
export async function decryptJwe(
  jwe: Uint8Array,
  key: KeyObject,
  what: string,
): Promise<Uint8Array | undefined> {
  const parsed = jsonOf(jwe)
  if (!isGeneral(parsed) && !isFlattened(parsed)) throw malformed(what, 'it has no ciphertext')
  const options = {
    keyManagementAlgorithms: key.asymmetricKeyType === 'rsa' ? RSA_ALGORITHMS : [EC_ALGORITHM],
    contentEncryptionAlgorithms: [CONTENT_ENCRYPTION],
    maxDecompressedLength: CONTENT_BYTES_MAX,
  }
  try {
    if (!isGeneral(parsed)) return (await flattenedDecrypt(parsed, key, options)).plaintext
    if (parsed.recipients.length > RECIPIENTS_MAX) {
      throw new LayerError(
        'RESOURCE_EXHAUSTED',
        `${what} has ${parsed.recipients.length} recipients, ${RECIPIENTS_MAX} are read`,
      )
    }
    return (await generalDecrypt(parsed, key, options)).plaintext
  } catch (error) {
    if (error instanceof errors.JWEInvalid) throw malformed(what, error.message)
    // Another kind of key, another key, or a header we do not accept: another private key may open it.
    if (error instanceof errors.JOSEError || error instanceof TypeError) return undefined
    if (error instanceof DOMException) return undefined
    throw error
  }
}

function algorithmFor(key: KeyObject): string {
  return key.asymmetricKeyType === 'rsa' ? 'RSA-OAEP' : EC_ALGORITHM
}

function malformed(what: string, why: string): LayerError {
  return new LayerError('INVALID_ARGUMENT', `${what} is not a JWE in JSON: ${why}`)
}

// The library checks every other field by itself.
function isFlattened(value: unknown): value is FlattenedJWE {
  return isRecord(value) && typeof value['ciphertext'] === 'string'
}

function isGeneral(value: unknown): value is GeneralJWE {
  return isFlattened(value) && 'recipients' in value && Array.isArray(value.recipients)
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null
}

function jsonOf(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch {
    return undefined
  }
}
