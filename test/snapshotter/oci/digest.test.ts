import { expect, test } from 'vitest'
import {
  DigestCheck,
  digestOf,
  isDigest,
  parseDigest,
  verifyDigest,
} from '../../../snapshotter/oci/digest.ts'
import { failureOf } from '../../support/failure-of.ts'

const EMPTY = 'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'

test('a digest is an algorithm, a colon and all of its hex digits in lower case', () => {
  expect(parseDigest(EMPTY)).toEqual({ algorithm: 'sha256', hex: EMPTY.slice(7) })
  expect(parseDigest(`sha512:${'0a'.repeat(64)}`).algorithm).toBe('sha512')
})

test.each([
  ['', /has no algorithm in front of a colon/],
  ['e3b0c442', /has no algorithm/],
  [':abc', /has no algorithm/],
  ['md5:d41d8cd98f00b204e9800998ecf8427e', /uses md5; sha256 and sha512 are understood/],
  [EMPTY.slice(0, -1), /must have 64 lower-case hex digits/],
  [`${EMPTY}0`, /must have 64/],
  [`sha256:${'A'.repeat(64)}`, /lower-case/],
  [`sha256:${'g'.repeat(64)}`, /hex digits/],
  [`sha512:${'0'.repeat(64)}`, /must have 128/],
  [`sha256:${'0'.repeat(63)}\n`, /must have 64/],
  ['../../etc/passwd', /has no algorithm/],
])('digest %j is refused with the reason', (text, reason) => {
  expect(() => parseDigest(text)).toThrow(reason)
  expect(isDigest(text)).toBe(false)
})

test('bytes are checked against a digest at once or piece by piece, and both digests are named', async () => {
  const bytes = Buffer.from('layer')
  for (const algorithm of ['sha256', 'sha512'] as const) {
    const digest = digestOf(bytes, algorithm)
    verifyDigest(bytes, digest, 'blob')
    const check = new DigestCheck(digest)
    check.update(bytes.subarray(0, 2))
    check.update(bytes.subarray(2))
    check.verify('blob')
    const wrong = new DigestCheck(digest)
    wrong.update(bytes.subarray(1))
    expect(() => wrong.verify('blob')).toThrow(digest)
  }
  const failure = await failureOf(() => verifyDigest(bytes, EMPTY, 'manifest x'))
  expect(failure.message).toContain(
    `manifest x: its bytes have digest ${digestOf(bytes)}, asked for was ${EMPTY}`,
  )
  expect(failure).toMatchObject({ code: 'DATA_LOSS' })
})
