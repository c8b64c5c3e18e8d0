import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { bytesToHex, keccak256 } from 'viem'
import { privateKeyToAccount, sign } from 'viem/accounts'
import { describe, expect, test } from 'vitest'
import { readBearerToken } from '../../../agent/deploy/bearer-token.ts'
import { seeded } from '../../support/seeded.ts'

const vectors = JSON.parse(readFileSync(join(import.meta.dirname, 'vectors.json'), 'utf8')) as {
  token: { json: string; signature: `0x${string}` }
  namespace: { publisher: string }
}
const SERVICE = '/apocryph.proto.v0.provisionPod.ProvisionPodService'
const PROVISION = `${SERVICE}/ProvisionPod`
/** A second before the golden token expires. */
const BEFORE = Date.parse('2024-01-01T00:00:00Z') / 1_000 - 1
const KEY = `0x${'5d'.repeat(32)}` as const
const publisher = privateKeyToAccount(KEY).address

function header(json: string, signature: Uint8Array): string {
  return `Bearer ${Buffer.from(json).toString('base64')}.${Buffer.from(signature).toString('base64')}`
}

async function signed(json: string, key: `0x${string}` = KEY): Promise<Uint8Array> {
  const { r, s, yParity } = await sign({ hash: keccak256(Buffer.from(json)), privateKey: key })
  return Buffer.concat([hex(r), hex(s), Buffer.of(yParity ?? 0)])
}

function hex(text: string): Buffer {
  return Buffer.from(text.slice(2), 'hex')
}

function jsonOf(fields: object = {}): string {
  return JSON.stringify({
    PodId: `0x${'ab'.repeat(32)}`,
    Operation: PROVISION,
    ExpirationTime: '2024-01-01T00:00:00Z',
    Publisher: publisher,
    ...fields,
  })
}

async function tokenOf(fields: object = {}): Promise<string> {
  const json = jsonOf(fields)
  return header(json, await signed(json))
}

const golden = header(vectors.token.json, hex(vectors.token.signature))

describe('the token of existing clients', () => {
  test('the golden one is its publisher’s until it expires', async () => {
    const token = await readBearerToken(golden, PROVISION, BEFORE)
    expect(token).toMatchObject({
      publisher: vectors.namespace.publisher.toLowerCase(),
      podId: `0x${'0'.repeat(64)}`,
      expiresAt: BEFORE + 1,
    })
  })

  test('the golden one is refused from the second on in which it expires', async () => {
    await expect(readBearerToken(golden, PROVISION, BEFORE + 1)).rejects.toMatchObject({
      code: 'DEADLINE_EXCEEDED',
    })
  })

  test('one for another operation is refused', async () => {
    await expect(readBearerToken(golden, `${SERVICE}/DeletePod`, BEFORE)).rejects.toMatchObject({
      code: 'UNAUTHENTICATED',
      message: expect.stringContaining('ProvisionPod'),
    })
  })

  test('one that is good for more than an hour is refused', async () => {
    await expect(readBearerToken(golden, PROVISION, BEFORE - 3_600)).rejects.toMatchObject({
      code: 'UNAUTHENTICATED',
      message: expect.stringContaining('3600 s'),
    })
  })

  test('with any bit of its signature altered it is refused', async () => {
    const whole = hex(vectors.token.signature)
    for (let bit = 0; bit < whole.length * 8; bit++) {
      const altered = Buffer.from(whole)
      altered[bit >> 3] = (altered[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      await expect(
        readBearerToken(header(vectors.token.json, altered), PROVISION, BEFORE),
      ).rejects.toMatchObject({ code: 'UNAUTHENTICATED' })
    }
  })

  test('with any bit of its JSON altered it is refused', async () => {
    const whole = Buffer.from(vectors.token.json)
    for (let bit = 0; bit < whole.length * 8; bit++) {
      const altered = Buffer.from(whole)
      altered[bit >> 3] = (altered[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      const token = `Bearer ${altered.toString('base64')}.${hex(vectors.token.signature).toString('base64')}`
      await expect(readBearerToken(token, PROVISION, BEFORE)).rejects.toMatchObject({
        code: expect.stringMatching(/^(UNAUTHENTICATED|DATA_LOSS|DEADLINE_EXCEEDED)$/),
      })
    }
  })

  test('signed by somebody else it is refused', async () => {
    const json = jsonOf()
    const token = header(json, await signed(json, `0x${'11'.repeat(32)}`))
    await expect(readBearerToken(token, PROVISION, BEFORE)).rejects.toMatchObject({
      code: 'UNAUTHENTICATED',
      message: expect.stringContaining(publisher.toLowerCase()),
    })
  })

  test('addresses count in upper and lower case, times with nanoseconds and offsets', async () => {
    for (const fields of [
      { Publisher: publisher.toLowerCase() },
      { ExpirationTime: '2024-01-01T00:00:00.123456789Z' },
      { ExpirationTime: '2024-01-01T02:00:00+02:00' },
    ]) {
      const token = await readBearerToken(await tokenOf(fields), PROVISION, BEFORE)
      expect(token.publisher).toBe(publisher.toLowerCase())
    }
  })

  test.each([
    ['a pod ID that is too short', { PodId: '0x00' }],
    ['a time that is none', { ExpirationTime: 'tomorrow' }],
    ['a time of a date that is none', { ExpirationTime: '2024-13-41T00:00:00Z' }],
    ['no publisher', { Publisher: undefined }],
    ['an operation that is a number', { Operation: 5 }],
  ])('%s is DATA_LOSS, as the clients know it', async (_name, fields) => {
    await expect(readBearerToken(await tokenOf(fields), PROVISION, BEFORE)).rejects.toMatchObject({
      code: 'DATA_LOSS',
    })
  })

  test('a header that is none is refused, whatever it is', async () => {
    const random = seeded(11)
    const parts = ['Bearer ', '.', 'AAAA', '=', ' ', 'Basic ', '{}', 'e30=', '\u00fc', golden]
    for (let round = 0; round < 2_000; round++) {
      const text = Array.from({ length: random(6) }, () => parts[random(parts.length)]).join('')
      if (text === golden) continue
      await expect(readBearerToken(text, PROVISION, BEFORE)).rejects.toMatchObject({
        name: 'CallError',
      })
    }
    await expect(readBearerToken(null, PROVISION, BEFORE)).rejects.toMatchObject({
      code: 'UNAUTHENTICATED',
    })
    await expect(
      readBearerToken(`Bearer ${'A'.repeat(10_000)}.AAAA`, PROVISION, BEFORE),
    ).rejects.toMatchObject({ code: 'UNAUTHENTICATED' })
  })

  test('two tokens that differ in anything have different IDs', async () => {
    const ids = new Set<string>()
    for (const fields of [
      {},
      { PodId: `0x${'ac'.repeat(32)}` },
      { ExpirationTime: '2024-01-01T00:00:01Z' },
    ]) {
      const { id } = await readBearerToken(await tokenOf(fields), PROVISION, BEFORE)
      ids.add(bytesToHex(id))
    }
    expect(ids.size).toBe(3)
  })
})
