import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { expect, test } from 'vitest'
import { LayerEncryptor } from '../../../snapshotter/encryption/encrypt-layer.ts'
import type { KeyUnwrapper } from '../../../snapshotter/encryption/key-unwrapper.ts'
import {
  type LayerEncryption,
  parseLayerEncryption,
} from '../../../snapshotter/encryption/layer-encryption.ts'
import { PrivateKeys } from '../../../snapshotter/encryption/private-keys.ts'
import type { PrivateOptions } from '../../../snapshotter/encryption/private-options.ts'
import { jweRecipient } from '../../../snapshotter/encryption/recipient.ts'
import { unwrapLayerKey } from '../../../snapshotter/encryption/unwrap-layer-key.ts'
import { CodedError, LayerError } from '../../../snapshotter/errors.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'
import { seeded } from '../../support/seeded.ts'

const JWE = 'org.opencontainers.image.enc.keys.jwe'
const PUBLIC_OPTIONS = 'org.opencontainers.image.enc.pubopts'

const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey
const stranger = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const plaintext = Buffer.from('the layer of a publisher who keeps it to himself'.repeat(100))

type Encrypted = { ciphertext: Uint8Array; annotations: Record<string, string> }

async function encrypted(...recipients: KeyObject[]): Promise<Encrypted> {
  const encryptor = new LayerEncryptor()
  const pieces = [plaintext.subarray(0, 33), plaintext.subarray(33)].map((piece) =>
    encryptor.push(piece),
  )
  const annotations = await encryptor.finish({
    plainDigest: digestOf(plaintext),
    recipients: recipients.map((key) => jweRecipient(createPublicKey(key))),
    signal: new AbortController().signal,
  })
  return { ciphertext: Buffer.concat(pieces), annotations }
}

const unwrap = (encryption: LayerEncryption, keys: readonly KeyObject[]): Promise<PrivateOptions> =>
  unwrapLayerKey(encryption, new PrivateKeys(keys), 'sha256:1', AbortSignal.timeout(10_000))

const base64 = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64')

test('what is encrypted for several recipients is opened by each of them, and by no other key', async () => {
  const { ciphertext, annotations } = await encrypted(ec, rsa)
  const encryption = parseLayerEncryption(annotations, 'sha256:1')
  expect(encryption.recipientKinds).toEqual(['jwe'])
  for (const key of [ec, rsa]) {
    const opened = await unwrap(encryption, [stranger, key])
    expect(Buffer.compare(opened.key.apply(0, ciphertext), plaintext)).toBe(0)
    expect(opened.plainDigest).toBe(digestOf(plaintext))
    const hmac = opened.key.hmac()
    hmac.update(ciphertext)
    expect(hmac.matches(encryption.hmac)).toBe(true)
  }
  const failure = await failureOf(() => unwrap(encryption, [stranger]))
  expect(failure).toMatchObject({ name: 'LayerError', code: 'PERMISSION_DENIED' })
  expect(failure.message).toMatch(/encrypted for jwe, and no key of this node opens it/)
})

test('without any key, the refusal names the kinds of recipients and what to configure', async () => {
  const { annotations } = await encrypted(ec)
  const encryption = parseLayerEncryption(annotations, 'sha256:1')
  const failure = await failureOf(() => unwrap(encryption, []))
  expect(failure.message).toBe(
    'layer sha256:1 is encrypted for jwe, and no key of this node opens it: put the private key of one of its recipients into the directory decryption.keysDir, or configure its key provider',
  )
})

test('a provider that cannot be asked does not keep a layer from whoever has a key that is here, and is named else', async () => {
  const { annotations } = await encrypted(ec)
  const provider = { 'org.opencontainers.image.enc.keys.provider.vault': 'AQI=' }
  const encryption = parseLayerEncryption({ ...provider, ...annotations }, 'sha256:1')
  const down = new LayerError('UNAVAILABLE', 'the key provider vault does not answer')
  const unwrapperOf = (keys: readonly KeyObject[]): KeyUnwrapper => ({
    unwrap: (wrapped, layer) =>
      wrapped.kind === 'provider'
        ? Promise.reject(down)
        : new PrivateKeys(keys).unwrap(wrapped, layer),
  })
  const signal = AbortSignal.timeout(10_000)
  const opened = await unwrapLayerKey(encryption, unwrapperOf([ec]), 'sha256:1', signal)
  expect(opened.plainDigest).toBe(digestOf(plaintext))
  const failure = unwrapLayerKey(encryption, unwrapperOf([stranger]), 'sha256:1', signal)
  await expect(failure).rejects.toBe(down)
})

test("another layer's key opens, and its HMAC tells that it is another layer's", async () => {
  const [one, other] = [await encrypted(ec), await encrypted(ec)]
  const swapped = { ...one.annotations, [JWE]: other.annotations[JWE] ?? '' }
  const encryption = parseLayerEncryption(swapped, 'sha256:1')
  const { key } = await unwrap(encryption, [ec])
  const hmac = key.hmac()
  hmac.update(one.ciphertext)
  expect(hmac.matches(encryption.hmac)).toBe(false)
})

test('a nonce in the public options is refused: nothing authenticates them', async () => {
  const { annotations } = await encrypted(ec)
  const options: unknown = JSON.parse(
    Buffer.from(annotations[PUBLIC_OPTIONS] ?? '', 'base64').toString(),
  )
  const cipheroptions = { nonce: Buffer.alloc(16).toString('base64') }
  const changed = {
    ...annotations,
    [PUBLIC_OPTIONS]: base64({ ...(options as object), cipheroptions }),
  }
  const failure = await failureOf(() => parseLayerEncryption(changed, 'sha256:1'))
  expect(failure).toMatchObject({ code: 'INVALID_ARGUMENT' })
  expect(failure.message).toMatch(/sets the cipher option nonce/)
})

test.each(['pgp', 'pkcs7', 'pkcs11'])('%s recipients are recognised and refused', async (kind) => {
  const annotations = { [`org.opencontainers.image.enc.keys.${kind}`]: 'eA==' }
  const failure = await failureOf(() => parseLayerEncryption(annotations, 'sha256:1'))
  expect(failure.code).toBe('UNIMPLEMENTED')
  expect(failure.message).toMatch(new RegExp(`encrypted for ${kind} only, which are not opened`))
})

test('a wrapped key of a key provider is found under its name', async () => {
  const { annotations } = await encrypted(ec)
  const name = 'org.opencontainers.image.enc.keys.provider.vault'
  const { wrapped } = parseLayerEncryption({ ...annotations, [name]: 'AQI=,Aw==' }, 'sha256:1')
  expect(wrapped.slice(1)).toEqual([
    { kind: 'provider', provider: 'vault', bytes: Buffer.from([1, 2]) },
    { kind: 'provider', provider: 'vault', bytes: Buffer.from([3]) },
  ])
})

test.each([
  ['no public options', { [PUBLIC_OPTIONS]: undefined }, /pubopts is missing/],
  ['another cipher', { [PUBLIC_OPTIONS]: base64({ cipher: 'ROT13', hmac: '' }) }, /cipher/],
  [
    'a short HMAC',
    { [PUBLIC_OPTIONS]: base64({ cipher: 'AES_256_CTR_HMAC_SHA256', hmac: 'AQ==' }) },
    /must have 32 bytes/,
  ],
  ['a key that is not base64', { [JWE]: 'not base64!' }, /not a list of base64/],
  ['no key', { [JWE]: undefined }, /has no annotation/],
  ['65 keys', { [JWE]: Array.from({ length: 65 }, () => 'AQ==').join() }, /65 wrapped keys/],
  ['an annotation of 65537 characters', { [JWE]: 'A'.repeat(65_537) }, /65537 characters/],
])('annotations with %s are refused with the reason', async (_, change, reason) => {
  const { annotations } = await encrypted(ec)
  const changed = Object.fromEntries(
    Object.entries({ ...annotations, ...change }).filter(
      (entry): entry is [string, string] => entry[1] !== undefined,
    ),
  )
  const failure = await failureOf(() => parseLayerEncryption(changed, 'sha256:1'))
  expect(failure.name).toMatch(/^(Layer|Image)Error$/)
  expect(failure.message).toMatch(reason)
})

test('more recipients than nodes read are refused before anything is published', async () => {
  const long = generateKeyPairSync('rsa', { modulusLength: 3072 }).privateKey
  for (const [key, count, reason] of [
    [ec, 65, /for 65 recipients/],
    [long, 64, /for 64 recipients .* nodes read 64 keys, and 65536 characters/],
  ] as const) {
    const failure = await failureOf(() => encrypted(...Array.from({ length: count }, () => key)))
    expect(failure).toMatchObject({ name: 'LayerError', code: 'RESOURCE_EXHAUSTED' })
    expect(failure.message).toMatch(reason)
  }
})

// Goal: hostile annotations end in an error of ours that never quotes a key. Method: thousands of seeded changes, of the base64
// and of the JSON within, each of which must be opened to the very plaintext or refused with a code.
test('annotations changed at random open to the same plaintext or are refused', async () => {
  const random = seeded(23)
  const { ciphertext, annotations } = await encrypted(ec)
  let refused = 0
  for (let round = 0; round < 3000; round++) {
    const name = [JWE, PUBLIC_OPTIONS][random(2)] ?? JWE
    const inside = random(2) === 0
    const bytes = Buffer.from(annotations[name] ?? '', inside ? 'base64' : 'latin1')
    for (let change = 0; change <= random(3); change++) bytes[random(bytes.length)] = random(128)
    const changed = { ...annotations, [name]: bytes.toString(inside ? 'base64' : 'latin1') }
    try {
      const encryption = parseLayerEncryption(changed, 'sha256:1')
      const { key } = await unwrap(encryption, [ec])
      expect(Buffer.compare(key.apply(0, ciphertext), plaintext), `round ${round}`).toBe(0)
    } catch (error) {
      if (!(error instanceof CodedError)) throw error
      refused += 1
    }
  }
  expect(refused).toBeGreaterThan(1000)
})
