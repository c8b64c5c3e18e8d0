import { createHash, type KeyObject } from 'node:crypto'
import type { BlockRequest } from '../block-source.ts'
import { CodedError, ImageError } from '../errors.ts'
import type { Digest } from '../oci/digest.ts'
import { indexesOf, readSignatures, type SignedPlace } from './image-signatures.ts'
import { isSignedBy } from './signing-key.ts'
import { parsePayload } from './simple-signing.ts'

/** A public key, and what people call it. */
export type Signer = { readonly name: string; readonly key: KeyObject }

/** Which images run on a node. One that names neither roots nor signers refuses all that it is for. */
export type TrustPolicy = {
  /** Stands in every refusal. */
  readonly name: string
  /** Names of the images that it is for; `*` stands for any characters. */
  readonly images: readonly string[]
  /** CIDv1 of images that run without a signature. */
  readonly roots: readonly string[]
  readonly signers: readonly Signer[]
  /** Of how many different signers there must be a signature. */
  readonly signaturesMin: number
}

/** An image that is about to be used. */
export type ImageToTrust = {
  /** As people name it: `ipdr.internal/<cid>`, `registry.example/app`. */
  readonly name: string
  /** CIDv1 of the image on IPFS. */
  readonly root: string | undefined
  readonly manifestDigest: Digest
  readonly place: SignedPlace
}

/** Who vouches for an image: names of signers, or the root in the policy's list. */
export type Trusted = {
  readonly policy: string | undefined
  readonly by: readonly string[]
}

type Collaborators = { readonly onRefused: (policy: string) => void }

/** What a node's operator demands of images. The first policy for an image decides; without one for it, it runs. */
export class TrustPolicies {
  readonly #policies: readonly TrustPolicy[]
  readonly #onRefused: (policy: string) => void
  /** Changes with every change of a policy; empty without any. */
  readonly fingerprint: string

  constructor(policies: readonly TrustPolicy[], { onRefused }: Collaborators) {
    this.#policies = policies
    this.#onRefused = onRefused
    this.fingerprint = policies.length === 0 ? '' : fingerprintOf(policies)
  }

  get names(): readonly string[] {
    return this.#policies.map(({ name }) => name)
  }

  /** The name of the policy that decides on images of this name; undefined if they run without. */
  decidingOn(name: string): string | undefined {
    return this.#policyFor(name)?.name
  }

  #policyFor(name: string): TrustPolicy | undefined {
    return this.#policies.find(({ images }) => images.some((pattern) => matches(pattern, name)))
  }

  /**
   * Checks an image before anything of it is made known to containerd. Rejects with ImageError PERMISSION_DENIED, which names the
   * policy and what it demands; with BlockError, or what else `place` fails with, if signatures cannot be had.
   */
  async check(image: ImageToTrust, request: BlockRequest): Promise<Trusted> {
    const policy = this.#policyFor(image.name)
    if (policy === undefined) return { policy: undefined, by: [] }
    if (image.root !== undefined && policy.roots.includes(image.root)) {
      return { policy: policy.name, by: [image.root] }
    }
    const by = policy.signers.length === 0 ? [] : await signersOf(image, policy, request)
    if (by.length >= policy.signaturesMin && by.length > 0) return { policy: policy.name, by }
    this.#onRefused(policy.name)
    throw new ImageError(
      'PERMISSION_DENIED',
      `image ${image.name} is refused by policy '${policy.name}': ${reason(policy, by, image.manifestDigest)}`,
      { policy: policy.name, image: image.name, manifest: image.manifestDigest },
    )
  }
}

/** Who of a policy's signers has signed the manifest, or an index that names it. Rejects as `readSignatures`. */
export async function signersOf(
  { manifestDigest, place }: Pick<ImageToTrust, 'manifestDigest' | 'place'>,
  { signers, signaturesMin }: Pick<TrustPolicy, 'signers' | 'signaturesMin'>,
  request: BlockRequest,
): Promise<string[]> {
  const by = new Set<string>()
  const look = async (digest: Digest): Promise<void> => {
    for (const { payload, signature } of await readSignatures(place, digest, request)) {
      for (const { name, key } of signers) {
        if (!by.has(name) && isSignedBy(key, payload, signature) && claims(payload, digest)) {
          by.add(name)
        }
      }
    }
  }
  await look(manifestDigest)
  if (by.size < signaturesMin) {
    for (const digest of await indexesOf(place, manifestDigest, request)) await look(digest)
  }
  return [...by]
}

/** Whether a payload, signed by somebody trusted, is about this manifest: it may be another's, put here. */
function claims(payload: Uint8Array, digest: Digest): boolean {
  try {
    return parsePayload(payload, 'a signature').manifestDigest === digest
  } catch (error) {
    if (error instanceof CodedError) return false
    throw error
  }
}

function reason(
  { signers, roots, signaturesMin }: TrustPolicy,
  by: readonly string[],
  digest: Digest,
): string {
  if (signers.length === 0) {
    return roots.length === 0
      ? 'it lets no image run'
      : `it lets only ${roots.length} root CIDs run, and this is none of them`
  }
  const names = signers.map(({ name }) => name).join(', ')
  const wanted =
    signaturesMin === 1
      ? `no signature by any of ${names}`
      : `signatures by ${by.length} of the ${signaturesMin} that it needs of ${names}`
  return `manifest ${digest} has ${wanted}; sign it with ipdr sign, and pull the root CID that it prints`
}

function matches(pattern: string, name: string): boolean {
  const parts = pattern
    .split('*')
    .map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, String.raw`\$&`))
  return new RegExp(`^${parts.join('.*')}$`, 's').test(name)
}

function fingerprintOf(policies: readonly TrustPolicy[]): string {
  const text = JSON.stringify(
    policies.map(({ signers, ...policy }) => ({
      ...policy,
      signers: signers.map(({ name, key }) => [
        name,
        key.export({ type: 'spki', format: 'der' }).toString('base64'),
      ]),
    })),
  )
  return createHash('sha256').update(text).digest('hex')
}
