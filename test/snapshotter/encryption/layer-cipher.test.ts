import { createCipheriv, createHmac } from 'node:crypto'
import { expect, test } from 'vitest'
import { LayerKey } from '../../../snapshotter/encryption/layer-cipher.ts'
import { failureOf } from '../../support/failure-of.ts'
import { seeded } from '../../support/seeded.ts'

const random = seeded(11)
const randomOf = (length: number): Buffer => Buffer.from(Array.from({ length }, () => random(256)))

// Goal: a range decrypted alone is that range of the whole. Method: OpenSSL encrypts all of it in one go; the last nonce
// wraps around the 128 bits of the counter within the text.
test.each([
  ['a random nonce', randomOf(16)],
  ['a nonce that carries through all its bytes', Buffer.from(`00${'ff'.repeat(15)}`, 'hex')],
  ['a nonce that wraps around 128 bits', Buffer.from(`${'ff'.repeat(15)}f0`, 'hex')],
])('any range of a layer is decrypted alone: %s', (_, nonce) => {
  const [secret, plaintext] = [randomOf(32), randomOf(40_000)]
  const ciphertext = createCipheriv('aes-256-ctr', secret, nonce).update(plaintext)
  const key = new LayerKey({ key: secret, nonce })
  for (let read = 0; read < 1000; read++) {
    const start = random(plaintext.length)
    const end = start + random(plaintext.length - start + 1)
    const decrypted = key.apply(start, ciphertext.subarray(start, end))
    expect(Buffer.compare(decrypted, plaintext.subarray(start, end)), `[${start}, ${end})`).toBe(0)
  }
})

test('a position beyond 4 GiB has its own counter', () => {
  const [secret, nonce] = [randomOf(32), randomOf(16)]
  const start = 5 * 1024 ** 3 + 7
  const blocks = BigInt((start - 7) / 16)
  const counter = (BigInt(`0x${nonce.toString('hex')}`) + blocks) % (1n << 128n)
  const iv = Buffer.from(counter.toString(16).padStart(32, '0'), 'hex')
  const expected = createCipheriv('aes-256-ctr', secret, iv).update(Buffer.alloc(100)).subarray(7)
  const key = new LayerKey({ key: secret, nonce })
  expect(Buffer.compare(key.apply(start, Buffer.alloc(93)), expected)).toBe(0)
})

test('the HMAC of all ciphertext is checked in pieces, and one flipped bit is found', () => {
  const [secret, ciphertext] = [randomOf(32), randomOf(5000)]
  const expected = createHmac('sha256', secret).update(ciphertext).digest()
  const key = new LayerKey({ key: secret, nonce: randomOf(16) })
  const matches = (bytes: Buffer): boolean => {
    const hmac = key.hmac()
    for (let at = 0; at < bytes.length; at += 777) hmac.update(bytes.subarray(at, at + 777))
    return hmac.matches(expected)
  }
  expect(matches(ciphertext)).toBe(true)
  ciphertext[4999] = (ciphertext[4999] ?? 0) ^ 1
  expect(matches(ciphertext)).toBe(false)
})

test('a key or nonce of another length is refused', async () => {
  for (const [key, nonce] of [
    [31, 16],
    [32, 12],
  ] as const) {
    const failure = await failureOf(
      () => new LayerKey({ key: randomOf(key), nonce: randomOf(nonce) }),
    )
    expect(failure).toMatchObject({ name: 'LayerError', code: 'INVALID_ARGUMENT' })
  }
})

test('a key that is logged or dumped does not show', () => {
  const secret = randomOf(32)
  const key = new LayerKey({ key: secret, nonce: randomOf(16) })
  expect(`${JSON.stringify({ key })} ${key.toString()}`).toBe(
    '{"key":"LayerKey(hidden)"} LayerKey(hidden)',
  )
})
