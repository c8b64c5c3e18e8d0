import type { KeyObject } from 'node:crypto'
import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from './block-source.ts'
import { IpdrImage } from './dag/ipdr-image.ts'
import { orUndefined } from './dag/ipfs-image.ts'
import { openIpfsImage } from './dag/open-ipfs-image.ts'
import { ImageError } from './errors.ts'
import { type Descriptor, MEDIA_TYPES } from './oci/descriptor.ts'
import { type Digest, digestOf } from './oci/digest.ts'
import { parseManifest } from './oci/manifest.ts'
import { IMAGE_HOST, type ImageReference } from './oci/reference.ts'
import { addFilesBeside } from './publish/add-files-beside.ts'
import type { BlockSink } from './publish/import-image.ts'
import { readSignatures, SIGNATURES_MAX } from './trust/image-signatures.ts'
import { imageToTrust } from './trust/image-to-trust.ts'
import { signMessage } from './trust/signing-key.ts'
import {
  PAYLOAD_MEDIA_TYPE,
  payloadBytes,
  SIGNATURE_ANNOTATION,
  signatureTag,
} from './trust/simple-signing.ts'
import { type Signer, signersOf } from './trust/trust-policies.ts'

type Options = {
  readonly blocks: BlockSource
  readonly signal: AbortSignal
}

type SignOptions = Options & {
  readonly key: KeyObject
  /** The name under which the image is signed: who verifies may demand one. Undefined: its own on IPFS. */
  readonly identity: string | undefined
  /** Where the new blocks go. No block of the image itself is put there. */
  readonly sink: BlockSink
}

export type SignedImage = {
  /** The image with the signature beside it. */
  readonly root: CID
  /** What was signed. */
  readonly manifestDigest: Digest
  /** That lie beside it now. */
  readonly signatures: number
}

/**
 * Signs a manifest or index of an image in cosign's way, and writes a root that leads to the same image and has the signature
 * beside it. Rejects with ImageError UNIMPLEMENTED if the image is not laid out as `ipdr push` does it, RESOURCE_EXHAUSTED if it
 * has as many signatures as are read, and as BlockSource.get and the sink.
 */
export async function signImage(
  { root, selector }: ImageReference,
  { key, identity, blocks, sink, signal }: SignOptions,
): Promise<SignedImage> {
  const request = { priority: 'foreground', signal } as const
  const image = await openIpfsImage(root, blocks, request)
  if (!(image instanceof IpdrImage)) {
    throw new ImageError(
      'UNIMPLEMENTED',
      `image ${root.toString()} is not laid out as ipdr push does it, so there is no place for a signature beside it: push it again`,
    )
  }
  const { digest: manifestDigest } = await image.manifest(selector, request)
  const before = await signatureLayers(image, manifestDigest, request)
  if (before.length >= SIGNATURES_MAX) {
    throw new ImageError(
      'RESOURCE_EXHAUSTED',
      `manifest ${manifestDigest} has ${before.length} signatures, ${SIGNATURES_MAX} are read`,
    )
  }
  const reference = identity ?? `${IMAGE_HOST}/${root.toV1().toString()}`
  const payload = payloadBytes({ manifestDigest, reference })
  const layer: Descriptor = {
    mediaType: PAYLOAD_MEDIA_TYPE,
    digest: digestOf(payload),
    size: payload.length,
    annotations: {
      [SIGNATURE_ANNOTATION]: Buffer.from(signMessage(payload, key)).toString('base64'),
    },
  }
  const layers = [...before, layer]
  const config = configOf(layers)
  const manifest = json({
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    config: { mediaType: MEDIA_TYPES.ociConfig, digest: digestOf(config), size: config.length },
    layers,
  })
  const manifests = new Map<string, Uint8Array>([
    [signatureTag(manifestDigest), manifest],
    [digestOf(manifest), manifest],
  ])
  const blobs = new Map([payload, config].map((bytes) => [digestOf(bytes), bytes] as const))
  const beside = [
    { directory: 'manifests', files: manifests },
    { directory: 'blobs', files: blobs },
  ]
  const signed = await addFilesBeside(root, beside, { blocks, sink }, request)
  return { root: signed, manifestDigest, signatures: layers.length }
}

export type VerifiedImage = {
  readonly manifestDigest: Digest
  /** Names of those who signed it, or an index that names it. */
  readonly by: readonly string[]
  /** That lie beside it, whoever made them. */
  readonly signatures: number
}

/** Who of `signers` has signed an image. Rejects with ImageError, and as BlockSource.get. */
export async function verifyImage(
  { root, selector }: ImageReference,
  signers: readonly Signer[],
  { blocks, signal }: Options,
): Promise<VerifiedImage> {
  const request = { priority: 'foreground', signal } as const
  const image = await openIpfsImage(root, blocks, request)
  const { digest } = await image.manifest(selector, request)
  const { place, manifestDigest } = imageToTrust(image, digest)
  const by = await signersOf(
    { place, manifestDigest },
    { signers, signaturesMin: signers.length },
    request,
  )
  const { length: signatures } = await readSignatures(place, manifestDigest, request)
  return { manifestDigest, by, signatures }
}

async function signatureLayers(
  image: IpdrImage,
  manifestDigest: Digest,
  request: BlockRequest,
): Promise<readonly Descriptor[]> {
  const tag = signatureTag(manifestDigest)
  const found = await orUndefined(image.manifest(tag, request))
  if (found === undefined) return []
  const manifest = parseManifest(found.bytes, `manifest ${tag} of ${image.root.toString()}`)
  return manifest.kind === 'manifest' ? manifest.layers : []
}

/** Readers want the config of an image (containers/image, docker/docker_client.go), though there is none. */
function configOf(layers: readonly Descriptor[]): Uint8Array {
  return json({
    architecture: '',
    os: '',
    created: '0001-01-01T00:00:00Z',
    config: {},
    rootfs: { type: 'layers', diff_ids: layers.map(({ digest }) => digest) },
  })
}

function json(document: object): Uint8Array {
  return Buffer.from(JSON.stringify(document))
}
