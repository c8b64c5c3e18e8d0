import { createPrivateKey, createPublicKey, type JsonWebKey, type KeyObject } from 'node:crypto'
import { CodedError } from '../errors.ts'

/** Bytes of a key file. 64 KiB: an RSA key of 16384 bits in PEM has 13 KB. */
export const KEY_FILE_BYTES_MAX: number = 64 * 1024

/** A key that cannot be read or is of no use. Its sentence names the file and never quotes it. */
export class KeyError extends CodedError {}

/** Curves that both JOSE's ECDH-ES (RFC 7518, 4.6) and Go's reader of them know. */
const CURVES = new Set(['prime256v1', 'secp384r1', 'secp521r1'])

/** Shortest RSA modulus, in bits: what RFC 7518 section 4.3 asks of RSA-OAEP. */
const RSA_BITS_MIN = 2048

/**
 * The private key in a JWK or PEM file, which `name` names. `passphrase` opens an encrypted PEM.
 * Throws KeyError INVALID_ARGUMENT, or PERMISSION_DENIED if a passphrase is missing or wrong.
 */
export function parsePrivateKey(bytes: Uint8Array, name: string, passphrase?: string): KeyObject {
  const text = keyText(bytes, name)
  const isLocked = /ENCRYPTED/.test(text) && !text.startsWith('{')
  if (isLocked && passphrase === undefined) {
    throw new KeyError(
      'PERMISSION_DENIED',
      `${name} is encrypted and no passphrase was given for it`,
    )
  }
  try {
    const key = text.startsWith('{')
      ? createPrivateKey({ key: jwkOf(text), format: 'jwk' })
      : createPrivateKey({ key: text, format: 'pem', ...(isLocked ? { passphrase } : {}) })
    return checked(key, name)
  } catch (error) {
    if (error instanceof KeyError) throw error
    // No cause: OpenSSL's and JSON's errors may quote what they read.
    if (isLocked) throw new KeyError('PERMISSION_DENIED', `the passphrase of ${name} is wrong`)
    throw new KeyError('INVALID_ARGUMENT', `${name} is not a private key in JWK or PEM`)
  }
}

/** The public key in a JWK or PEM file, of a private key its public half. Throws KeyError INVALID_ARGUMENT. */
export function parsePublicKey(bytes: Uint8Array, name: string): KeyObject {
  const text = keyText(bytes, name)
  try {
    const key = text.startsWith('{')
      ? createPublicKey({ key: jwkOf(text), format: 'jwk' })
      : createPublicKey({ key: text, format: 'pem' })
    return checked(key, name)
  } catch (error) {
    if (error instanceof KeyError) throw error
    throw new KeyError('INVALID_ARGUMENT', `${name} is not a public key in JWK or PEM`)
  }
}

function keyText(bytes: Uint8Array, name: string): string {
  if (bytes.length <= KEY_FILE_BYTES_MAX) return Buffer.from(bytes).toString('utf8').trim()
  throw new KeyError(
    'RESOURCE_EXHAUSTED',
    `${name} has ${bytes.length} bytes, a key file may have ${KEY_FILE_BYTES_MAX}`,
  )
}

function jwkOf(text: string): JsonWebKey {
  return JSON.parse(text) as JsonWebKey
}

function checked(key: KeyObject, name: string): KeyObject {
  const { asymmetricKeyType: type, asymmetricKeyDetails: details } = key
  if (type === 'ec' && CURVES.has(details?.namedCurve ?? '')) return key
  if (type === 'rsa' && (details?.modulusLength ?? 0) >= RSA_BITS_MIN) return key
  throw new KeyError(
    'INVALID_ARGUMENT',
    `${name} is a key of type ${type ?? 'unknown'}; layers are opened with EC keys on P-256, P-384 and P-521 and RSA keys of ${RSA_BITS_MIN} bits and more`,
  )
}
