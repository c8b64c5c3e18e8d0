import {
  constants,
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  scryptSync,
  sign,
  verify,
} from 'node:crypto'
import { xsalsa20poly1305 } from '@noble/ciphers/salsa.js'
import { z } from 'zod'
import { fromBase64 } from '../encryption/base64.ts'
import { KEY_FILE_BYTES_MAX, KeyError } from '../encryption/key-file.ts'
import { parseJson } from '../oci/parse-json.ts'

/** Shortest RSA modulus that is taken, in bits: what NIST SP 800-57 part 1 asks for beyond 2030 is 3072, what cosign makes 2048. */
const RSA_BITS_MIN = 2048

/** The curves that sigstore's signers have (sigstore/sigstore, pkg/signature). */
const CURVES = new Set(['prime256v1', 'secp384r1', 'secp521r1'])

/** Memory that opening a private key may take, in bytes. 128 MiB: cosign's N of 2^16 with r 8 takes 64. */
const SCRYPT_BYTES_MAX = 128 * 1024 ** 2

/** A private key as `cosign generate-key-pair` writes it (sigstore/cosign, pkg/cosign/keys.go; go-securesystemslib, encrypted). */
const ENCRYPTED_PEM =
  /-----BEGIN ENCRYPTED (?:SIGSTORE|COSIGN) PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END/

const base64 = z.string().transform((text, context) => {
  const bytes = fromBase64(text)
  if (bytes !== undefined) return bytes
  context.addIssue({ code: 'custom', message: 'is not base64' })
  return z.NEVER
})

const boxSchema = z.object({
  kdf: z.object({
    name: z.literal('scrypt'),
    params: z.object({
      // A power of two: any other is refused by scrypt itself.
      N: z
        .int()
        .min(2)
        .max(2 ** 20),
      r: z.int().min(1).max(64),
      p: z.int().min(1).max(64),
    }),
    salt: base64.refine(({ length }) => length >= 8 && length <= 1024),
  }),
  cipher: z.object({
    name: z.literal('nacl/secretbox'),
    nonce: base64.refine(({ length }) => length === 24),
  }),
  ciphertext: base64,
})

/** The public key in a PEM file, which `name` names. Throws KeyError. */
export function parseVerificationKey(bytes: Uint8Array, name: string): KeyObject {
  const text = keyText(bytes, name)
  if (text.includes('PRIVATE KEY')) {
    throw new KeyError(
      'INVALID_ARGUMENT',
      `${name} is a private key: a node needs the public one only, keep this one off it`,
    )
  }
  try {
    return checked(createPublicKey({ key: text, format: 'pem' }), name)
  } catch (error) {
    if (error instanceof KeyError) throw error
    throw new KeyError('INVALID_ARGUMENT', `${name} is not a public key in PEM`)
  }
}

/**
 * The private key in a file: PEM, or as cosign encrypts it, which `password` opens. Throws KeyError INVALID_ARGUMENT, or
 * PERMISSION_DENIED if the password is missing or wrong; no sentence quotes the file.
 */
export function parseSigningKey(bytes: Uint8Array, name: string, password?: string): KeyObject {
  const text = keyText(bytes, name)
  const [, box] = ENCRYPTED_PEM.exec(text) ?? []
  const isLocked = box !== undefined || text.includes('ENCRYPTED')
  if (isLocked && password === undefined) {
    throw new KeyError('PERMISSION_DENIED', `${name} is encrypted and no password was given for it`)
  }
  try {
    if (box === undefined) {
      const passphrase = isLocked ? { passphrase: password ?? '' } : {}
      return checked(createPrivateKey({ key: text, format: 'pem', ...passphrase }), name)
    }
    const der = openBox(Buffer.from(box.replaceAll(/\s/g, ''), 'base64'), password ?? '')
    if (der !== undefined) {
      return checked(
        createPrivateKey({ key: Buffer.from(der), format: 'der', type: 'pkcs8' }),
        name,
      )
    }
  } catch (error) {
    if (error instanceof KeyError) throw error
    // No cause: OpenSSL's and JSON's errors may quote what they read.
    if (!isLocked || box !== undefined) {
      throw new KeyError(
        'INVALID_ARGUMENT',
        `${name} is not a private key in PEM or as cosign has it`,
      )
    }
  }
  throw new KeyError('PERMISSION_DENIED', `the password of ${name} is wrong`)
}

/** The signature of `message`, as sigstore's signers make it for the kind of key. */
export function signMessage(message: Uint8Array, key: KeyObject): Uint8Array {
  return sign(hashOf(key), message, key)
}

/** Whether `signature` is one of `message` by the private half of `key`. */
export function isSignedBy(key: KeyObject, message: Uint8Array, signature: Uint8Array): boolean {
  try {
    if (verify(hashOf(key), message, key, signature)) return true
    if (key.asymmetricKeyType !== 'rsa') return false
    const padding = constants.RSA_PKCS1_PSS_PADDING
    return verify(hashOf(key), message, { key, padding }, signature)
  } catch {
    return false
  }
}

/** Ed25519 hashes by itself (RFC 8032); the others sign SHA-256, whatever the curve (sigstore/cosign, pkg/cosign). */
function hashOf({ asymmetricKeyType }: KeyObject): string | null {
  return asymmetricKeyType === 'ed25519' ? null : 'sha256'
}

/** PKCS #8; undefined if the password is another. */
function openBox(json: Uint8Array, password: string): Uint8Array | undefined {
  const { kdf, cipher, ciphertext } = parseJson(json, boxSchema, 'the encrypted key')
  const { N, r, p } = kdf.params
  const maxmem = SCRYPT_BYTES_MAX
  const key = scryptSync(password, kdf.salt, 32, { N, r, p, maxmem })
  try {
    return xsalsa20poly1305(key, cipher.nonce).decrypt(ciphertext)
  } catch {
    return undefined
  }
}

function keyText(bytes: Uint8Array, name: string): string {
  if (bytes.length <= KEY_FILE_BYTES_MAX) return Buffer.from(bytes).toString('utf8').trim()
  throw new KeyError(
    'RESOURCE_EXHAUSTED',
    `${name} has ${bytes.length} bytes, a key file may have ${KEY_FILE_BYTES_MAX}`,
  )
}

function checked(key: KeyObject, name: string): KeyObject {
  const { asymmetricKeyType: type, asymmetricKeyDetails: details } = key
  if (type === 'ed25519') return key
  if (type === 'ec' && CURVES.has(details?.namedCurve ?? '')) return key
  if (type === 'rsa' && (details?.modulusLength ?? 0) >= RSA_BITS_MIN) return key
  throw new KeyError(
    'INVALID_ARGUMENT',
    `${name} is a key of type ${type ?? 'unknown'}; images are signed with EC keys on P-256, P-384 and P-521, RSA keys of ${RSA_BITS_MIN} bits and more, and Ed25519`,
  )
}
