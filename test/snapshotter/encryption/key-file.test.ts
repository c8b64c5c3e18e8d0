import { createPublicKey, generateKeyPairSync } from 'node:crypto'
import { expect, test } from 'vitest'
import { parsePrivateKey, parsePublicKey } from '../../../snapshotter/encryption/key-file.ts'
import { failureOf } from '../../support/failure-of.ts'

const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey
const pem = (format: 'pkcs8' | 'sec1' | 'pkcs1', key = ec): Buffer =>
  Buffer.from(key.export({ type: format, format: 'pem' }))

test.each([
  ['JWK', Buffer.from(JSON.stringify({ ...ec.export({ format: 'jwk' }), kid: 'key' }))],
  ['PKCS #8 PEM', pem('pkcs8')],
  ['SEC 1 PEM', pem('sec1')],
])('a private key is read from %s, and its public half too', (_, bytes) => {
  expect(parsePrivateKey(bytes, 'k').equals(ec)).toBe(true)
  expect(parsePublicKey(bytes, 'k').equals(createPublicKey(ec))).toBe(true)
})

test('an RSA key is read from PKCS #1 PEM, a public key from SPKI PEM', () => {
  expect(parsePrivateKey(pem('pkcs1', rsa), 'k').equals(rsa)).toBe(true)
  const publicKey = createPublicKey(rsa)
  const spki = Buffer.from(publicKey.export({ type: 'spki', format: 'pem' }))
  expect(parsePublicKey(spki, 'k').equals(publicKey)).toBe(true)
})

test('an encrypted PEM wants its passphrase, and says so when it is missing or wrong', async () => {
  const locked = Buffer.from(
    ec.export({ type: 'pkcs8', format: 'pem', cipher: 'aes-256-cbc', passphrase: 'right' }),
  )
  expect(parsePrivateKey(locked, 'k.pem', 'right').equals(ec)).toBe(true)
  const missing = await failureOf(() => parsePrivateKey(locked, 'k.pem'))
  expect(missing.message).toBe('k.pem is encrypted and no passphrase was given for it')
  const wrong = await failureOf(() => parsePrivateKey(locked, 'k.pem', 'wrong'))
  expect(wrong).toMatchObject({
    code: 'PERMISSION_DENIED',
    message: 'the passphrase of k.pem is wrong',
  })
})

test('what is no key, a key of no use or too long is refused, and never quoted', async () => {
  const { d: secret, ...jwk } = ec.export({ format: 'jwk' })
  const broken = Buffer.from(`{"d":"${secret}", broken`)
  const short = generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey
  const signing = generateKeyPairSync('ed25519').privateKey
  const refusals = [
    [broken, /k is not a private key in JWK or PEM$/],
    [Buffer.from(JSON.stringify(jwk)), /not a private key/],
    [pem('pkcs8', short), /RSA keys of 2048 bits/],
    [pem('pkcs8', signing), /a key of type ed25519/],
    [Buffer.alloc(65_537), /65537 bytes/],
  ] as const
  for (const [bytes, reason] of refusals) {
    const failure = await failureOf(() => parsePrivateKey(bytes, 'k'))
    expect(failure.name).toBe('KeyError')
    expect(failure.message).toMatch(reason)
    expect(failure.message).not.toContain(secret)
  }
})
