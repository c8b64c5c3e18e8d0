import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import type { CID } from 'multiformats/cid'
import { describe, expect, test } from 'vitest'
import { openIpfsImage } from '../../../snapshotter/dag/open-ipfs-image.ts'
import { CodedError } from '../../../snapshotter/errors.ts'
import { type Digest, digestOf } from '../../../snapshotter/oci/digest.ts'
import { signImage, verifyImage } from '../../../snapshotter/sign-image.ts'
import { imageToTrust } from '../../../snapshotter/trust/image-to-trust.ts'
import { signMessage } from '../../../snapshotter/trust/signing-key.ts'
import {
  parsePayload,
  payloadBytes,
  signatureTag,
} from '../../../snapshotter/trust/simple-signing.ts'
import { TrustPolicies, type TrustPolicy } from '../../../snapshotter/trust/trust-policies.ts'
import { failureOf } from '../../support/failure-of.ts'
import { makeTar } from '../../support/make-tar.ts'
import { MemoryBlocks } from '../../support/memory-blocks.ts'
import { seeded } from '../../support/seeded.ts'
import { plainLayer, publishImage } from '../layers/published-image.ts'

const signal = AbortSignal.timeout(120_000)
const request = { priority: 'foreground', signal } as const
const newKey = (): KeyObject => generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
const [alice, bob, mallory] = [newKey(), newKey(), newKey()]
const signer = (name: string, key: KeyObject) => ({ name, key: createPublicKey(key) })

const policy = (change: Partial<TrustPolicy> = {}): TrustPolicy => ({
  name: 'production',
  images: ['*'],
  roots: [],
  signers: [signer('alice.pub', alice), signer('bob.pub', bob)],
  signaturesMin: 1,
  ...change,
})

type Published = { readonly blocks: MemoryBlocks; readonly root: CID; readonly digest: Digest }

async function publish(name = 'app'): Promise<Published> {
  const blocks = new MemoryBlocks()
  const { root, manifestDigest } = await publishImage(blocks, [plainLayer(makeTar({ name }))])
  return { blocks, root, digest: manifestDigest }
}

const sinkOf = (blocks: MemoryBlocks) => ({
  put: async (_cid: CID, block: Uint8Array) => void blocks.blocks.set(_cid.toString(), block),
})

async function signed(
  { blocks, root, digest }: Published,
  ...keys: KeyObject[]
): Promise<Published> {
  let now = root
  for (const key of keys) {
    const options = { key, identity: undefined, blocks, sink: sinkOf(blocks), signal }
    now = (await signImage({ root: now, selector: digest }, options)).root
  }
  return { blocks, root: now, digest }
}

async function check(
  { blocks, root, digest }: Published,
  ...policies: TrustPolicy[]
): Promise<readonly string[]> {
  const trust = new TrustPolicies(policies, { onRefused: () => {} })
  const image = await openIpfsImage(root, blocks, request)
  return (await trust.check(imageToTrust(image, digest), request)).by
}

/** The image with a file of the test's own in place of its signatures. */
async function withSignatures(
  image: Published,
  signatures: Uint8Array,
  blobs: readonly Uint8Array[] = [],
): Promise<Published> {
  const { addFilesBeside } = await import('../../../snapshotter/publish/add-files-beside.ts')
  const { blocks, digest } = image
  const beside = [
    { directory: 'manifests', files: new Map([[signatureTag(digest), signatures]]) },
    { directory: 'blobs', files: new Map(blobs.map((blob) => [digestOf(blob), blob])) },
  ]
  const root = await addFilesBeside(image.root, beside, { blocks, sink: sinkOf(blocks) }, request)
  return { ...image, root }
}

const manifestOf = (...layers: object[]): Buffer =>
  Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      config: {
        mediaType: 'application/vnd.oci.image.config.v1+json',
        digest: digestOf(Buffer.from('{}')),
        size: 2,
      },
      layers,
    }),
  )

const layerOf = (payload: Uint8Array, signature: Uint8Array, change: object = {}): object => ({
  mediaType: 'application/vnd.dev.cosign.simplesigning.v1+json',
  digest: digestOf(payload),
  size: payload.length,
  annotations: { 'dev.cosignproject.cosign/signature': Buffer.from(signature).toString('base64') },
  ...change,
})

describe('under a policy that names signers an image', () => {
  test('runs if one of them signed its manifest, whoever else did', async () => {
    const image = await signed(await publish(), mallory, alice)
    expect(await check(image, policy())).toEqual(['alice.pub'])
  })

  test('that is refused is counted under the policy', async () => {
    const refused: string[] = []
    const trust = new TrustPolicies([policy()], { onRefused: (name) => refused.push(name) })
    const { blocks, root, digest } = await publish()
    const image = await openIpfsImage(root, blocks, request)
    await failureOf(() => trust.check(imageToTrust(image, digest), request))
    expect(refused).toEqual(['production'])
  })

  test('without a signature is refused, with the name of the policy, who should have signed, and what to do', async () => {
    const image = await publish()
    const failure = await failureOf(() => check(image, policy()))
    expect(failure).toMatchObject({ name: 'ImageError', code: 'PERMISSION_DENIED' })
    expect(failure.message).toBe(
      `image ipdr.internal/${image.root.toString()} is refused by policy 'production': manifest ${image.digest} has no signature by any of alice.pub, bob.pub; sign it with ipdr sign, and pull the root CID that it prints`,
    )
  })

  test('signed by somebody else alone is refused', async () => {
    const image = await signed(await publish(), mallory)
    await expect(check(image, policy())).rejects.toThrow(/no signature by any of/)
  })

  test('needs as many different signers as the policy says, and one who signs twice is one', async () => {
    const twice = await signed(await publish(), alice, alice)
    const both = await signed(await publish(), alice, bob)
    const two = policy({ signaturesMin: 2 })
    await expect(check(twice, two)).rejects.toThrow(/signatures by 1 of the 2 that it needs/)
    expect(await check(both, two)).toEqual(['alice.pub', 'bob.pub'])
  })

  test('runs if an index that names its manifest was signed', async () => {
    const { blocks, root, digest } = await publish()
    const index = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: 'application/vnd.oci.image.index.v1+json',
        manifests: [{ mediaType: 'application/vnd.oci.image.manifest.v1+json', digest, size: 7 }],
      }),
    )
    const { addFilesBeside } = await import('../../../snapshotter/publish/add-files-beside.ts')
    const files = new Map<string, Uint8Array>([
      ['v1', index],
      [digestOf(index), index],
    ])
    const beside = [{ directory: 'manifests', files }]
    const whole = await addFilesBeside(root, beside, { blocks, sink: sinkOf(blocks) }, request)
    const image = await signed({ blocks, root: whole, digest: digestOf(index) }, alice)
    expect(await check({ ...image, digest }, policy())).toEqual(['alice.pub'])
    const other = await publish('other')
    await expect(check({ ...image, digest: other.digest }, policy())).rejects.toThrow(/refused/)
  })
})

describe('a signature that proves nothing is passed over:', () => {
  const honest = (digest: Digest): Uint8Array =>
    payloadBytes({ manifestDigest: digest, reference: 'a' })

  test('one of another image, by a trusted signer', async () => {
    const image = await publish()
    const payload = honest((await publish('other')).digest)
    const replayed = await withSignatures(
      image,
      manifestOf(layerOf(payload, signMessage(payload, alice))),
      [payload],
    )
    await expect(check(replayed, policy())).rejects.toThrow(/refused by policy/)
  })

  test.each<[string, (payload: Uint8Array) => [object, Uint8Array]]>([
    [
      'a payload that was changed',
      (payload) => {
        const changed = Buffer.from(Buffer.from(payload).toString().replace('"a"', '"b"'))
        return [layerOf(changed, signMessage(payload, alice)), changed]
      },
    ],
    [
      'a payload that is not under its digest',
      (payload) => [
        layerOf(payload, signMessage(payload, alice), { digest: digestOf(Buffer.from('x')) }),
        payload,
      ],
    ],
    [
      'a signature of the digest alone',
      (payload) => [layerOf(payload, signMessage(Buffer.from(digestOf(payload)), alice)), payload],
    ],
    [
      'a signature that is not base64',
      (payload) => [
        layerOf(payload, new Uint8Array(), {
          annotations: { 'dev.cosignproject.cosign/signature': '!' },
        }),
        payload,
      ],
    ],
    [
      'a payload that is no JSON',
      () => {
        const text = Buffer.from('hello')
        return [layerOf(text, signMessage(text, alice)), text]
      },
    ],
    [
      'a payload of 100 KB',
      () => {
        const text = Buffer.alloc(100_000, ' ')
        return [layerOf(text, signMessage(text, alice)), text]
      },
    ],
    [
      'a payload that says it is 10 bytes and is 100 KB',
      () => {
        const text = Buffer.alloc(100_000, ' ')
        return [layerOf(text, signMessage(text, alice), { size: 10 }), text]
      },
    ],
    [
      'a layer of another media type',
      (payload) => [
        layerOf(payload, signMessage(payload, alice), { mediaType: 'text/plain' }),
        payload,
      ],
    ],
  ])('%s', async (_, make) => {
    const image = await publish()
    const [layer, blob] = make(honest(image.digest))
    const forged = await withSignatures(image, manifestOf(layer), [blob])
    await expect(check(forged, policy())).rejects.toThrow(/refused by policy/)
  })

  test('the 65th of an image', async () => {
    const image = await publish()
    const payload = honest(image.digest)
    const noise = Array.from({ length: 64 }, () => layerOf(payload, Buffer.from('noise')))
    const last = layerOf(payload, signMessage(payload, alice))
    const full = await withSignatures(image, manifestOf(...noise, last), [payload])
    await expect(check(full, policy())).rejects.toThrow(/refused by policy/)
    const fits = await withSignatures(image, manifestOf(...noise.slice(1), last), [payload])
    expect(await check(fits, policy())).toEqual(['alice.pub'])
  })

  // Goal: no change of what lies beside an image makes an unsigned one run. Method: seeded changes of a signature manifest and its
  // payload; only those that leave the signed bytes as they are may still count.
  test('any that was changed at random', async () => {
    const random = seeded(17)
    const image = await publish()
    const payload = honest(image.digest)
    const manifest = manifestOf(layerOf(payload, signMessage(payload, alice)))
    let refused = 0
    for (let round = 0; round < 400; round++) {
      const [bytes, blob] = [Buffer.from(manifest), Buffer.from(payload)]
      const target = random(2) === 0 ? bytes : blob
      target[random(target.length)] = random(256)
      const changed = await withSignatures(image, bytes, [blob, payload])
      try {
        await check(changed, policy())
        const named = bytes.toString().includes(digestOf(payload))
        expect(named, `round ${round}`).toBe(true)
      } catch (error) {
        if (!(error instanceof CodedError) || error.code !== 'PERMISSION_DENIED') throw error
        refused += 1
      }
    }
    expect(refused).toBeGreaterThan(100)
  }, 120_000)
})

describe('of several policies', () => {
  const denyAll = policy({ name: 'nothing', signers: [] })

  test('the first that is for an image decides', async () => {
    const image = await publish()
    const name = `ipdr.internal/${image.root.toString()}`
    const allowed = policy({ name: 'known', images: [name], roots: [image.root.toString()] })
    expect(await check(image, allowed, denyAll)).toEqual([image.root.toString()])
    await expect(check(image, denyAll, allowed)).rejects.toThrow(
      /policy 'nothing': it lets no image run/,
    )
  })

  test('none for an image lets it run, and no name but its own matches', async () => {
    const image = await publish()
    const name = `ipdr.internal/${image.root.toString()}`
    for (const pattern of [
      'registry.example/*',
      'ipdr.internal',
      name.slice(0, -1),
      'ipdrXinternal/*',
      '[a-z]*',
      '.*',
    ]) {
      expect(await check(image, { ...denyAll, images: [pattern] })).toEqual([])
    }
    for (const pattern of ['*', 'ipdr.internal/*', 'ipdr.*', name]) {
      await expect(check(image, { ...denyAll, images: [pattern] })).rejects.toThrow('nothing')
    }
  })

  test('one that lists roots lets only those run', async () => {
    const [image, other] = [await publish(), await publish('other')]
    const list = policy({ signers: [], roots: [other.root.toString()] })
    await expect(check(image, list)).rejects.toThrow(/lets only 1 root CIDs run/)
    expect(await check(other, list)).toEqual([other.root.toString()])
  })

  test('each change has another fingerprint, and none has an empty one', () => {
    const of = (...policies: TrustPolicy[]): string =>
      new TrustPolicies(policies, { onRefused: () => {} }).fingerprint
    const all = [
      of(),
      of(policy()),
      of(policy({ name: 'other' })),
      of(policy({ images: ['a'] })),
      of(policy({ roots: ['a'] })),
      of(policy({ signaturesMin: 2 })),
      of(policy({ signers: [signer('alice.pub', bob)] })),
      of(policy(), denyAll),
      of(denyAll, policy()),
    ]
    expect(new Set(all).size).toBe(all.length)
    expect(of()).toBe('')
  })
})

describe('ipdr sign', () => {
  test('leads to the very same image, under its tag and digest, and keeps the signatures that were there', async () => {
    const image = await signed(await publish(), alice, bob)
    const opened = await openIpfsImage(image.root, image.blocks, request)
    expect((await opened.manifest('latest', request)).digest).toBe(image.digest)
    const signers = [signer('alice.pub', alice), signer('bob.pub', bob), signer('m.pub', mallory)]
    expect(
      await verifyImage({ root: image.root, selector: 'latest' }, signers, {
        blocks: image.blocks,
        signal,
      }),
    ).toEqual({ manifestDigest: image.digest, by: ['alice.pub', 'bob.pub'], signatures: 2 })
  })

  test('writes what cosign reads: the digest, the name, and the type', async () => {
    const { digest } = await publish()
    const payload = payloadBytes({ manifestDigest: digest, reference: 'registry.example/app' })
    expect(JSON.parse(Buffer.from(payload).toString())).toEqual({
      critical: {
        identity: { 'docker-reference': 'registry.example/app' },
        image: { 'docker-manifest-digest': digest },
        type: 'cosign container image signature',
      },
      optional: null,
    })
    expect(parsePayload(payload, 'it')).toEqual({
      manifestDigest: digest,
      reference: 'registry.example/app',
    })
  })

  test('refuses an image with 64 signatures', async () => {
    const image = await publish()
    const payload = payloadBytes({ manifestDigest: image.digest, reference: 'a' })
    const full = Array.from({ length: 64 }, () => layerOf(payload, Buffer.from('x')))
    const crowded = await withSignatures(image, manifestOf(...full), [payload])
    const failure = await failureOf(() => signed(crowded, alice))
    expect(failure).toMatchObject({ code: 'RESOURCE_EXHAUSTED' })
  })
})
