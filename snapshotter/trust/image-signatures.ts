import type { BlockRequest } from '../block-source.ts'
import type { FoundManifest } from '../dag/ipfs-image.ts'
import { fromBase64 } from '../encryption/base64.ts'
import { ImageError } from '../errors.ts'
import { type Digest, verifyDigest } from '../oci/digest.ts'
import { type ImageIndex, type ImageManifest, parseManifest } from '../oci/manifest.ts'
import { isTagOfArtifact } from '../oci/reference.ts'
import {
  PAYLOAD_BYTES_MAX,
  PAYLOAD_MEDIA_TYPE,
  SIGNATURE_ANNOTATION,
  signatureTag,
} from './simple-signing.ts'

/** Signatures of one manifest that are looked at. 64: a signer each, and room. */
export const SIGNATURES_MAX = 64

/** Characters of one signature. 4 KiB: RSA of 16384 bits has 2,732. */
const SIGNATURE_CHARS_MAX = 4096

/** Tags that are looked through for an index that names a manifest. 64: names and versions of one image. */
const TAGS_MAX = 64

/** Where an image's manifests and blobs are read: a root CID, a repository of a registry. */
export type SignedPlace = {
  /** For people. */
  readonly name: string
  /** The manifest of a tag or digest. Rejects with ImageError NOT_FOUND if there is none. */
  manifest(reference: string, request: BlockRequest): Promise<FoundManifest>
  tags(request: BlockRequest): Promise<readonly string[]>
  /** All of a blob, which may have `bytesMax` bytes. */
  blobBytes(digest: Digest, bytesMax: number, request: BlockRequest): Promise<Uint8Array>
}

/** A signature as it was found; nothing is verified. */
export type FoundSignature = { readonly payload: Uint8Array; readonly signature: Uint8Array }

/**
 * The signatures that lie beside a manifest, in cosign's way. One that is malformed is passed over, since anybody can put one there.
 * Rejects with BlockError if they cannot be had: then nothing is known.
 */
export async function readSignatures(
  place: SignedPlace,
  manifestDigest: Digest,
  request: BlockRequest,
): Promise<FoundSignature[]> {
  const manifest = await parsedManifest(place, signatureTag(manifestDigest), request)
  if (manifest?.kind !== 'manifest') return []
  const signatures: FoundSignature[] = []
  for (const { mediaType, digest, size, annotations } of manifest.layers.slice(0, SIGNATURES_MAX)) {
    const text = annotations?.[SIGNATURE_ANNOTATION] ?? ''
    const signature = text.length <= SIGNATURE_CHARS_MAX ? fromBase64(text) : undefined
    const isOne = mediaType === PAYLOAD_MEDIA_TYPE && size <= PAYLOAD_BYTES_MAX
    if (!isOne || signature === undefined || signature.length === 0) continue
    try {
      const payload = await place.blobBytes(digest, PAYLOAD_BYTES_MAX, request)
      verifyDigest(payload, digest, `signature ${digest} of ${place.name}`)
      signatures.push({ payload, signature })
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
    }
  }
  return signatures
}

/** Indexes of the same place that name a manifest: who signed one of them has signed the manifest too. Rejects as `readSignatures`. */
export async function indexesOf(
  place: SignedPlace,
  manifestDigest: Digest,
  request: BlockRequest,
): Promise<Digest[]> {
  const named: Digest[] = []
  const tags = (await place.tags(request)).filter((tag) => !isTagOfArtifact(tag))
  for (const tag of tags.slice(0, TAGS_MAX)) {
    const parsed = await parsedManifest(place, tag, request)
    if (parsed?.kind !== 'index') continue
    if (parsed.manifests.some(({ digest }) => digest === manifestDigest)) named.push(parsed.digest)
  }
  return [...new Set(named)]
}

/** Undefined if it is not there, or if it is none. */
async function parsedManifest(
  place: SignedPlace,
  reference: string,
  request: BlockRequest,
): Promise<((ImageManifest | ImageIndex) & { readonly digest: Digest }) | undefined> {
  try {
    const { bytes, digest } = await place.manifest(reference, request)
    return { ...parseManifest(bytes, `manifest ${reference} of ${place.name}`), digest }
  } catch (error) {
    if (error instanceof ImageError) return undefined
    throw error
  }
}
