import { base16 } from 'multiformats/bases/base16'
import { base36 } from 'multiformats/bases/base36'
import { CID } from 'multiformats/cid'
import { expect, test } from 'vitest'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { parseImageReference, resolveReference } from '../../../snapshotter/oci/reference.ts'
import { failureOf } from '../../support/failure-of.ts'

const V1 = 'bafybeifsgierqdgmnlaawzggr4glgew5wnyzxwx3sqbx2bexjizsgp4aay'
const V0 = 'QmRyQvNzZSk7N8ugZmvo5LApVtY2m6ns754E6yMkuCpU9K'
const cid = CID.parse(V1)
const digest = digestOf(Buffer.from('m'))

test.each([
  [`ipdr.internal/${V1}`, 'latest'],
  [`ipdr.internal/${V1}:v1`, 'v1'],
  [`ipdr.internal/${V1}@${digest}`, digest],
  [`ipdr.internal/${V1}:v1@${digest}`, digest],
  [`ipdr.internal/ipfs/${V1}`, 'latest'],
  [`ipdr.internal/ipfs/${V1}:v1`, 'v1'],
  [`ipdr.internal/app:${V1}`, 'latest'],
  [`ipdr.internal/team/app:${V1}`, 'latest'],
  [`ipdr.internal/${cid.toString(base36)}`, 'latest'],
  [`ipdr.internal/${cid.toString(base16)}`, 'latest'],
  [V1, 'latest'],
  [`/ipfs/${V1}`, 'latest'],
  [`ipfs://${V1}`, 'latest'],
  [`${V1}:v1`, 'v1'],
])('%s names the image', (text, selector) => {
  const reference = parseImageReference(text)
  expect(reference.root.toString()).toBe(V1)
  expect(reference.selector).toBe(selector)
})

test('a CIDv0 is taken as a tag, or bare, and answered as CIDv1', () => {
  for (const text of [`ipdr.internal/app:${V0}`, V0, `ipfs://${V0}`]) {
    expect([text, parseImageReference(text).root]).toEqual([text, CID.parse(V0).toV1()])
  }
})

test.each([
  ['CIDv0', V0],
  ['base32 in capitals', V1.toUpperCase()],
])(
  'a repository name with upper-case letters (%s) is refused with the same CID in lower case',
  async (_, text) => {
    const lower = (text === V0 ? CID.parse(V0) : cid).toV1().toString()
    const failure = await failureOf(() => parseImageReference(`ipdr.internal/${text}`))
    expect(failure.message).toMatch(/has upper-case letters, which a repository name may not have/)
    expect(failure.message).toContain(
      `write ipdr.internal/${lower}, or keep it as a tag: ipdr.internal/app:${text}`,
    )
  },
)

test.each([
  ['docker.io/library/debian:12', /neither a CID nor an image of ipdr\.internal/],
  ['ipdr.internal/app:v1', /holds no CID; write ipdr\.internal\/<cid>/],
  ['ipdr.internal/app', /holds no CID/],
  ['ipdr.internal/', /is not a repository name/],
  [`ipdr.internal/${V1}:`, /the tag must be/],
  [`ipdr.internal/${V1}:-x`, /the tag must be/],
  [`ipdr.internal/${V1}:${'t'.repeat(129)}`, /the tag must be/],
  [`ipdr.internal/${V1}@sha256:abc`, /must have 64/],
  [`ipdr.internal/a/../${V1}`, /is not a repository name/],
  [`ipdr.internal/${'a/'.repeat(200)}b`, /255 characters at most/],
  [V1.slice(0, -2), /neither a CID/],
  [`ipdr.internal/k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8`, /IPNS name/],
])('%s is refused with what to write instead', async (text, reason) => {
  const failure = await failureOf(() => parseImageReference(text))
  expect(failure.message).toMatch(reason)
  expect(failure).toMatchObject({ code: 'INVALID_ARGUMENT' })
})

test('a registry request for a name without CID means nothing by itself', () => {
  expect(resolveReference('app', 'latest')).toBeUndefined()
  expect(resolveReference('app', digest)).toBeUndefined()
  expect(resolveReference(V1, digest)).toMatchObject({ selector: digest })
  expect(resolveReference('app', V1)).toMatchObject({ selector: 'latest' })
})

test('a CID is written in lower case whatever case it was read in', () => {
  const cid = 'bafybeifsgierqdgmnlaawzggr4glgew5wnyzxwx3sqbx2bexjizsgp4aay'
  for (const text of [cid, cid.toUpperCase(), `bAFY${cid.slice(4)}`]) {
    expect(parseImageReference(text).root.toString()).toBe(cid)
  }
})
