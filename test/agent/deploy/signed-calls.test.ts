import { fromBinary, toBinary } from '@bufbuild/protobuf'
import { encodeBinaryHeader } from '@connectrpc/connect'
import { privateKeyToAccount } from 'viem/accounts'
import { describe, expect, test } from 'vitest'
import { type Call, signCall } from '../../../agent/client/signed-call.ts'
import { CallError } from '../../../agent/deploy/call-error.ts'
import { authenticate } from '../../../agent/deploy/signed-calls.ts'
import { SignedCallSchema } from '../../../proto/messages/ipdr/deploy_pb.js'

const NOW = 1_800_000_000
const account = privateKeyToAccount(`0x${'5d'.repeat(32)}`)
const payload = new TextEncoder().encode('what is deployed')
const agent = {
  operator: `0x${'0a'.repeat(20)}`,
  peerId: '12D3KooWAgent',
  accepted: [{ evmChainId: 31_337n, contract: `0x${'cc'.repeat(20)}` }],
} as const

const call: Call = {
  operation: 'Deploy',
  operator: agent.operator,
  agent: agent.peerId,
  podId: `0x${'ab'.repeat(32)}`,
  payload,
  expiresAt: BigInt(NOW + 60),
  nonce: `0x${'77'.repeat(32)}`,
  evmChainId: 31_337n,
  contract: `0x${'cc'.repeat(20)}`,
}

async function headerOf(changes: Partial<Call> = {}): Promise<string> {
  return encodeBinaryHeader(await signCall({ ...call, ...changes }, account), SignedCallSchema)
}

function isOf(result: unknown, publisher: string): boolean {
  return (
    typeof result === 'object' &&
    result !== null &&
    'publisher' in result &&
    result.publisher === publisher
  )
}

const textOfBigInt = (_key: string, value: unknown): unknown =>
  typeof value === 'bigint' ? String(value) : value

const asked = { operation: 'Deploy', payload }

describe('a signed call', () => {
  test('is its publisher’s, for one pod', async () => {
    const authentic = await authenticate(await headerOf(), asked, agent, NOW)
    expect(authentic).toMatchObject({
      publisher: account.address.toLowerCase(),
      podId: call.podId,
      evmChainId: 31_337n,
      contract: call.contract,
      expiresAt: NOW + 60,
    })
  })

  test.each([
    ['operation', { operation: 'Delete' }],
    ['operator', { operator: `0x${'0b'.repeat(20)}` as const }],
    ['agent', { agent: '12D3KooWAnother' }],
    ['contract', { contract: `0x${'cd'.repeat(20)}` as const }],
    ['contract', { evmChainId: 1n }],
    ['payload_hash', { payload: new TextEncoder().encode('something else') }],
    ['expires_at', { expiresAt: BigInt(NOW + 601) }],
  ])('for another %s is refused, and the field named', async (field, changes) => {
    await expect(authenticate(await headerOf(changes), asked, agent, NOW)).rejects.toMatchObject({
      code: 'UNAUTHENTICATED',
      facts: { field },
    })
  })

  test('that has expired is refused, and says when', async () => {
    const late = await headerOf({ expiresAt: BigInt(NOW - 5) })
    await expect(authenticate(late, asked, agent, NOW)).rejects.toMatchObject({
      code: 'DEADLINE_EXCEEDED',
      message: expect.stringContaining('5 s ago'),
    })
  })

  test('with any bit altered is refused, says just the same, or is another publisher’s', async () => {
    const whole = toBinary(SignedCallSchema, await signCall(call, account))
    const original = await authenticate(await headerOf(), asked, agent, NOW)
    let refused = 0
    let others = 0
    const same: unknown[] = []
    for (let bit = 0; bit < whole.length * 8; bit++) {
      const altered = Uint8Array.from(whole)
      altered[bit >> 3] = (altered[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      const header = Buffer.from(altered).toString('base64')
      const result = await authenticate(header, asked, agent, NOW).catch((error: unknown) => error)
      if (result instanceof CallError) refused++
      else if (isOf(result, original.publisher)) same.push(result)
      else others++
    }
    expect(new Set(same.map((one) => JSON.stringify(one, textOfBigInt))).size).toBe(1)
    expect(same[0]).toEqual(original)
    expect(refused + others + same.length).toBe(whole.length * 8)
    expect(refused).toBeGreaterThan(whole.length * 4)
  })

  test('whose fields have other lengths is refused', async () => {
    const signed = await signCall(call, account)
    for (const [field, length] of [
      ['podId', 31],
      ['nonce', 33],
      ['operator', 0],
      ['signature', 64],
      ['payloadHash', 1_000],
    ] as const) {
      const changed = fromBinary(SignedCallSchema, toBinary(SignedCallSchema, signed))
      changed[field] = new Uint8Array(length)
      const header = encodeBinaryHeader(changed, SignedCallSchema)
      await expect(authenticate(header, asked, agent, NOW)).rejects.toMatchObject({
        code: 'UNAUTHENTICATED',
      })
    }
  })

  test('must be there, and be one', async () => {
    for (const header of [null, '', '!', 'AAAA', 'A'.repeat(5_000), '////']) {
      await expect(authenticate(header, asked, agent, NOW)).rejects.toMatchObject({
        code: 'UNAUTHENTICATED',
      })
    }
  })
})
