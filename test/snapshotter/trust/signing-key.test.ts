import { createPublicKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { CodedError } from '../../../snapshotter/errors.ts'
import {
  isSignedBy,
  parseSigningKey,
  parseVerificationKey,
  signMessage,
} from '../../../snapshotter/trust/signing-key.ts'
import { failureOf } from '../../support/failure-of.ts'
import { runCommand } from '../../support/run-command.ts'
import { Scratch } from '../../support/scratch.ts'
import { seeded } from '../../support/seeded.ts'
import { SuitePrograms } from '../../support/suite-programs.ts'

const PASSWORD = 'correct horse'
const scratch = Scratch.open('signing-key')
const message = Buffer.from('what is signed')
/** As skopeo makes it, in cosign's format. */
let locked: Buffer
let lockedPublic: Buffer

beforeAll(async () => {
  const skopeo = SuitePrograms.unpack('trixie', 'skopeo', 'skopeo').command('usr/bin/skopeo')
  const [file, ...loader] = skopeo
  const password = join(scratch.dir, 'password')
  writeFileSync(password, PASSWORD)
  const prefix = join(scratch.dir, 'by-skopeo')
  const words = ['generate-sigstore-key', '--output-prefix', prefix, '--passphrase-file', password]
  await runCommand(file, [...loader, ...words])
  locked = readFileSync(`${prefix}.private`)
  lockedPublic = readFileSync(`${prefix}.pub`)
}, 300_000)
afterAll(() => scratch[Symbol.asyncDispose]())

const pem = (key: KeyObject, type: 'pkcs8' | 'spki'): Buffer =>
  Buffer.from(key.export({ type, format: 'pem' } as never) as string)

describe('a private key', () => {
  test('that skopeo wrote in the format of cosign opens with its password and fits its public half', () => {
    const key = parseSigningKey(locked, 'cosign.key', PASSWORD)
    const verifier = parseVerificationKey(lockedPublic, 'cosign.pub')
    expect(isSignedBy(verifier, message, signMessage(message, key))).toBe(true)
  })

  test.each([
    ['without a password', undefined, /is encrypted and no password was given/],
    ['with another password', 'wrong horse', /the password of cosign.key is wrong/],
    ['with an empty one', '', /the password of cosign.key is wrong/],
  ])('in the format of cosign is refused %s', async (_, password, reason) => {
    const failure = await failureOf(() => parseSigningKey(locked, 'cosign.key', password))
    expect(failure).toMatchObject({ name: 'KeyError', code: 'PERMISSION_DENIED' })
    expect(failure.message).toMatch(reason)
  })

  test('in PEM, open or encrypted, is read too', async () => {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    expect(parseSigningKey(pem(privateKey, 'pkcs8'), 'key.pem').equals(privateKey)).toBe(true)
    const options = { type: 'pkcs8', format: 'pem', cipher: 'aes-256-cbc', passphrase: PASSWORD }
    const encrypted = Buffer.from(privateKey.export(options as never) as string)
    expect(parseSigningKey(encrypted, 'key.pem', PASSWORD).equals(privateKey)).toBe(true)
    const failure = await failureOf(() => parseSigningKey(encrypted, 'key.pem', 'wrong'))
    expect(failure.message).toBe('the password of key.pem is wrong')
  })

  // Goal: a hostile key file ends in an error of ours, soon, that quotes nothing of it. Method: seeded changes of the JSON inside
  // the PEM; numbers that would take all memory or time are among them.
  test('changed at random is refused or still the same, and costs no more than the limits', () => {
    const random = seeded(91)
    const [head = '', body = '', tail = ''] = locked
      .toString()
      .split(/(?<=KEY-----\n)|(?=-----END)/)
    const json = Buffer.from(body, 'base64').toString()
    const whole = parseSigningKey(locked, 'k', PASSWORD)
    let refused = 0
    for (let round = 0; round < 200; round++) {
      const changed = json.replace(/\d+|[A-Za-z0-9+/=]{8,}|"[a-z/]+"/g, (token) =>
        random(6) === 0 ? (['0', '1', '-1', '99999999999', '""', 'null'][random(6)] ?? '') : token,
      )
      const inside = Buffer.from(changed).toString('base64')
      try {
        const key = parseSigningKey(Buffer.from(`${head}${inside}\n${tail}`), 'k', PASSWORD)
        expect(key.equals(whole)).toBe(true)
      } catch (error) {
        if (!(error instanceof CodedError)) throw error
        if (error.message.includes(json.slice(20, 60))) throw error
        refused += 1
      }
    }
    expect(refused).toBeGreaterThan(100)
  }, 120_000)
})

describe('a public key', () => {
  test.each([
    ['EC P-256', () => generateKeyPairSync('ec', { namedCurve: 'P-256' })],
    ['EC P-384', () => generateKeyPairSync('ec', { namedCurve: 'P-384' })],
    ['RSA', () => generateKeyPairSync('rsa', { modulusLength: 2048 })],
    ['Ed25519', () => generateKeyPairSync('ed25519')],
  ])('of kind %s verifies what its private half signed, and nothing else', (_, make) => {
    const { publicKey, privateKey } = make()
    const key = parseVerificationKey(pem(publicKey, 'spki'), 'key.pub')
    const signature = signMessage(message, privateKey)
    expect(isSignedBy(key, message, signature)).toBe(true)
    expect(isSignedBy(key, Buffer.from('something else'), signature)).toBe(false)
    expect(isSignedBy(key, message, signature.subarray(1))).toBe(false)
    expect(isSignedBy(key, message, new Uint8Array())).toBe(false)
    const other = createPublicKey(generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey)
    expect(isSignedBy(other, message, signature)).toBe(false)
  })

  test('of RSA verifies PSS too, as some signers write', () => {
    const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
    const signature = sign('sha256', message, { key: privateKey, padding: 6 })
    expect(isSignedBy(publicKey, message, signature)).toBe(true)
  })

  test.each([
    [
      'that is private',
      () => pem(generateKeyPairSync('ed25519').privateKey, 'pkcs8'),
      /a node needs the public one only/,
    ],
    [
      'of 1024 bits',
      () => pem(generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey, 'spki'),
      /of 2048 bits and more/,
    ],
    [
      'for key agreement',
      () => pem(generateKeyPairSync('x25519').publicKey, 'spki'),
      /type x25519/,
    ],
    ['that is none', () => Buffer.from('hello'), /is not a public key in PEM/],
    ['of 100 KB', () => Buffer.alloc(100_000, 'x'), /may have 65536/],
  ])('%s is refused with the reason', async (_, make, reason) => {
    const failure = await failureOf(() => parseVerificationKey(make(), 'key.pub'))
    expect(failure.name).toBe('KeyError')
    expect(failure.message).toMatch(reason)
  })
})
