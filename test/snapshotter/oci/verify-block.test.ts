import { createHash } from 'node:crypto'
import { blake2b } from '@noble/hashes/blake2.js'
import { blake3 } from '@noble/hashes/blake3.js'
import { CID } from 'multiformats/cid'
import { create } from 'multiformats/hashes/digest'
import { expect, test } from 'vitest'
import {
  inlineBlock,
  verifyBlock,
  verifyBlockAside,
} from '../../../snapshotter/oci/verify-block.ts'
import { failureOf } from '../../support/failure-of.ts'

const block = Buffer.from('a block')
const openssl = (name: string): Uint8Array => createHash(name).update(block).digest()

test.each([
  ['sha1', 0x11, openssl('sha1')],
  ['sha2-256', 0x12, openssl('sha256')],
  ['sha2-512', 0x13, openssl('sha512')],
  ['sha3-256', 0x16, openssl('sha3-256')],
  ['sha2-384', 0x20, openssl('sha384')],
  ['blake2b-256', 0xb220, blake2b(block, { dkLen: 32 })],
  ['blake2b-512', 0xb240, openssl('blake2b512')],
  ['blake2s-256', 0xb260, openssl('blake2s256')],
  ['blake3', 0x1e, blake3(block)],
  ['sha2-256 cut to 20 bytes', 0x12, openssl('sha256').subarray(0, 20)],
  ['identity', 0x00, block],
])(
  'a block named by %s is accepted, and one with a bit changed is not',
  async (_, code, digest) => {
    const cid = CID.createV1(0x55, create(code, digest))
    verifyBlock(cid, block)
    const changed = Buffer.from(block)
    changed[3] = (changed[3] ?? 0) ^ 1
    const failure = await failureOf(() => verifyBlock(cid, changed))
    expect(failure.message).toContain(`its CID says ${Buffer.from(digest).toString('hex')}`)
    expect(failure).toMatchObject({ name: 'BlockError', code: 'DATA_LOSS' })
  },
)

test.each([
  ['a hash that is not known', 0x1012, 32, /multihash 0x1012, which cannot be checked here/],
  ['a digest that is too short to mean anything', 0x12, 8, /a digest of 8 bytes/],
])('%s is refused, not skipped', async (_, code, length, reason) => {
  const cid = CID.createV1(0x55, create(code, new Uint8Array(length)))
  const failure = await failureOf(() => verifyBlock(cid, block))
  expect(failure.message).toMatch(reason)
  expect(failure).toMatchObject({ code: 'UNIMPLEMENTED' })
})

test.each([
  ['small', 7],
  ['large', 100_000],
])(
  'beside the thread a %s block is accepted, and one with a bit changed is not',
  async (_, size) => {
    const bytes = Buffer.alloc(size, 'x')
    const digest = createHash('sha256').update(bytes).digest()
    for (const whole of [digest, digest.subarray(0, 20)]) {
      const cid = CID.createV1(0x55, create(0x12, whole))
      await verifyBlockAside(cid, bytes)
      const changed = Buffer.from(bytes)
      changed[size - 1] = 0
      const failure = await failureOf(() => verifyBlockAside(cid, changed))
      expect(failure).toMatchObject({ name: 'BlockError', code: 'DATA_LOSS' })
    }
  },
)

test('an identity CID carries its block', () => {
  expect(inlineBlock(CID.createV1(0x55, create(0x00, block)))).toEqual(block)
  expect(inlineBlock(CID.createV1(0x55, create(0x12, openssl('sha256'))))).toBeUndefined()
})
