import { createPublicKey, generateKeyPairSync } from 'node:crypto'
import { expect, test } from 'vitest'
import { LayerEncryptor } from '../../../snapshotter/encryption/encrypt-layer.ts'
import { encryptGeneralJwe, encryptJwe } from '../../../snapshotter/encryption/jwe.ts'
import { parseLayerEncryption } from '../../../snapshotter/encryption/layer-encryption.ts'
import { PrivateKeys } from '../../../snapshotter/encryption/private-keys.ts'
import { jweRecipient } from '../../../snapshotter/encryption/recipient.ts'
import { unwrapLayerKey } from '../../../snapshotter/encryption/unwrap-layer-key.ts'
import { CodedError } from '../../../snapshotter/errors.ts'
import { seeded } from '../../support/seeded.ts'

const JWE = 'org.opencontainers.image.enc.keys.jwe'
const PUBLIC_OPTIONS = 'org.opencontainers.image.enc.pubopts'
const ROUNDS = 1200

const { signal } = new AbortController()
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const publicKey = createPublicKey(ec)
const plaintext = Buffer.from('a layer that nobody else is to read'.repeat(50))

type Json = Readonly<Record<string, unknown>>

const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
const parsed = (text: string, encoding: BufferEncoding): Json =>
  JSON.parse(Buffer.from(text, encoding).toString()) as Json

/** Every field of `value` that there is, at any depth, changed to each kind of value in turn; now and then removed or added to. */
function* changesOf(value: Json, rounds: number, seed: number): Generator<Json, void> {
  const random = seeded(seed)
  const kinds = [
    () => null,
    () => undefined,
    () => [],
    () => ({}),
    () => '',
    () => -1,
    () => 2 ** 53,
    () => true,
    () => 'A'.repeat(random(5000)),
    () => Buffer.from(Array.from({ length: random(80) }, () => random(256))).toString('base64'),
    () => 'é\u0000\u2028'.repeat(random(20)),
    () => [[[[{}]]]],
  ]
  const change = (before: unknown): unknown => {
    if (typeof before !== 'object' || before === null || random(5) === 0) {
      if (typeof before === 'string' && random(2) === 0) {
        const at = random(before.length)
        return before.slice(0, at) + before.slice(at + random(3))
      }
      return kinds[random(kinds.length)]?.()
    }
    const entries = Object.entries(before)
    const at = random(entries.length + 1)
    const added = ['zip', 'crit', 'recipients', 'nonce', '__proto__', 'toString'][random(6)] ?? ''
    if (at === entries.length) return { ...before, [added]: kinds[random(kinds.length)]?.() }
    return Object.fromEntries(
      entries.map(([name, inner], index) => [name, index === at ? change(inner) : inner]),
    )
  }
  for (let round = 0; round < rounds; round++) {
    const changed = change(value)
    yield typeof changed === 'object' && changed !== null ? (changed as Json) : { changed }
  }
}

async function encrypted(): Promise<{
  ciphertext: Uint8Array
  annotations: Record<string, string>
}> {
  const encryptor = new LayerEncryptor()
  const ciphertext = encryptor.push(plaintext)
  const recipients = [jweRecipient(publicKey)]
  const annotations = await encryptor.finish({ plainDigest: 'sha256:1', recipients, signal })
  return { ciphertext, annotations }
}

/** Opens as a node would: to what was encrypted, or to a failure of ours; of anything else it throws. */
async function outcome(
  annotations: Readonly<Record<string, string>>,
  ciphertext: Uint8Array,
): Promise<'same' | 'other' | CodedError> {
  try {
    const encryption = parseLayerEncryption(annotations, 'sha256:1')
    const keys = new PrivateKeys([ec])
    const { key } = await unwrapLayerKey(encryption, keys, 'sha256:1', signal)
    return Buffer.compare(key.apply(0, ciphertext), plaintext) === 0 ? 'same' : 'other'
  } catch (error) {
    if (error instanceof CodedError) return error
    throw error
  }
}

const base64 = (value: unknown): string => json(value).toString('base64')

// Goal: whatever stands in a field that strangers can write, a node opens the layer to what was encrypted or says why not, in words
// that hold no key. Method: each field of each structure takes every kind of value, over and over, from a seed.
test.each([
  ['a wrapped key', 101, (wrapped: Json) => wrapped],
  [
    'the header of a wrapped key',
    102,
    (wrapped: Json, change: Json) => ({
      ...wrapped,
      protected: json(change).toString('base64url'),
    }),
  ],
])('fields of %s changed at random: the same layer, or a refusal', async (_, seed, merge) => {
  const { ciphertext, annotations } = await encrypted()
  const wrapped = parsed(annotations[JWE] ?? '', 'base64')
  const header = parsed(String(wrapped['protected']), 'base64url')
  const isHeader = seed === 102
  let refused = 0
  for (const change of changesOf(isHeader ? header : wrapped, ROUNDS, seed)) {
    const changed = isHeader ? merge(wrapped, change) : change
    const found = await outcome({ ...annotations, [JWE]: base64(changed) }, ciphertext)
    if (found === 'same') continue
    expect(found, `changed to ${JSON.stringify(changed)}`).toBeInstanceOf(CodedError)
    refused++
  }
  expect(refused).toBeGreaterThan(ROUNDS / 2)
})

test('fields of a wrapped key for several recipients changed at random: the same layer, or a refusal', async () => {
  const { ciphertext, annotations } = await encrypted()
  const { key } = await unwrapLayerKey(
    parseLayerEncryption(annotations, ''),
    new PrivateKeys([ec]),
    '',
    signal,
  )
  const { key: symkey, nonce } = key.reveal()
  const options = {
    symkey: Buffer.from(symkey).toString('base64'),
    digest: 'sha256:1',
    cipheroptions: { nonce: Buffer.from(nonce).toString('base64') },
  }
  const stranger = createPublicKey(generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey)
  const general = JSON.parse(
    Buffer.from(await encryptGeneralJwe(json(options), [stranger, publicKey])).toString(),
  ) as Json
  expect(await outcome({ ...annotations, [JWE]: base64(general) }, ciphertext)).toBe('same')
  let refused = 0
  for (const changed of changesOf(general, ROUNDS, 103)) {
    const found = await outcome({ ...annotations, [JWE]: base64(changed) }, ciphertext)
    if (found === 'same') continue
    expect(found, `changed to ${JSON.stringify(changed)}`).toBeInstanceOf(CodedError)
    refused++
  }
  expect(refused).toBeGreaterThan(ROUNDS / 4)
})

test('fields of the public options changed at random: the same layer, or a refusal', async () => {
  const { ciphertext, annotations } = await encrypted()
  const options = parsed(annotations[PUBLIC_OPTIONS] ?? '', 'base64')
  let refused = 0
  for (const changed of changesOf(options, ROUNDS, 104)) {
    const found = await outcome({ ...annotations, [PUBLIC_OPTIONS]: base64(changed) }, ciphertext)
    if (found === 'same') continue
    expect(found, `changed to ${JSON.stringify(changed)}`).toBeInstanceOf(CodedError)
    refused++
  }
  expect(refused).toBeGreaterThan(ROUNDS / 2)
})

test('fields of the private options changed at random: another key, or a refusal that quotes none', async () => {
  const { ciphertext, annotations } = await encrypted()
  const symkey = Buffer.alloc(32, 7).toString('base64')
  const nonce = Buffer.alloc(16, 9).toString('base64')
  const failures: CodedError[] = []
  const opened = new Set<string>()
  for (const changed of changesOf(
    { symkey, digest: 'sha256:1', cipheroptions: { nonce } },
    ROUNDS,
    105,
  )) {
    const content = json(changed)
    const wrapped = Buffer.from(await encryptJwe(content, publicKey)).toString('base64')
    const found = await outcome({ ...annotations, [JWE]: wrapped }, ciphertext)
    if (found instanceof CodedError) failures.push(found)
    else opened.add(found)
  }
  // They are the word of whoever encrypted; that it is not this layer's key is what the HMAC tells.
  expect([...opened]).toEqual(['other'])
  expect(failures.length).toBeGreaterThan(ROUNDS / 4)
  const sentences = failures.map(({ message, cause }) => `${message} ${String(cause)}`).join('\n')
  for (const secret of [symkey.slice(0, 20), nonce.slice(0, 20)])
    expect(sentences).not.toContain(secret)
})
