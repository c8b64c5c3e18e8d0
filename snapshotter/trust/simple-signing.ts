import { z } from 'zod'
import { type Digest, isDigest } from '../oci/digest.ts'
import { parseJson } from '../oci/parse-json.ts'

/** Bytes of one payload. 64 KiB: cosign's has 250 bytes, and whoever signs may add claims. */
export const PAYLOAD_BYTES_MAX: number = 64 * 1024

/** Media type of a payload, as a layer (sigstore/cosign, specs/SIGNATURE_SPEC.md). */
export const PAYLOAD_MEDIA_TYPE = 'application/vnd.dev.cosign.simplesigning.v1+json'

/** The signature of a payload in base64, as an annotation of that layer (same). */
export const SIGNATURE_ANNOTATION = 'dev.cosignproject.cosign/signature'

/** What the payload says that it is; both spellings are written (same, and containers/image, docs/atomic-signature.md). */
const TYPES = ['cosign container image signature', 'atomic container signature']

const payloadSchema = z.object({
  critical: z.object({
    identity: z.object({ 'docker-reference': z.string().max(1024) }),
    image: z.object({ 'docker-manifest-digest': z.string().refine(isDigest, 'is no digest') }),
    type: z.enum(TYPES),
  }),
})

/** What a signature says: the manifest that was signed, and under which name. */
export type SignedClaim = { readonly manifestDigest: Digest; readonly reference: string }

/** Reads a signed payload (containers/image, docs/atomic-signature.md). Throws ImageError INVALID_ARGUMENT. */
export function parsePayload(bytes: Uint8Array, what: string): SignedClaim {
  const { critical } = parseJson(bytes, payloadSchema, what)
  return {
    manifestDigest: critical.image['docker-manifest-digest'],
    reference: critical.identity['docker-reference'],
  }
}

/** The payload to sign. */
export function payloadBytes({ manifestDigest, reference }: SignedClaim): Uint8Array {
  return Buffer.from(
    JSON.stringify({
      critical: {
        identity: { 'docker-reference': reference },
        image: { 'docker-manifest-digest': manifestDigest },
        type: TYPES[0],
      },
      optional: null,
    }),
  )
}

/** The tag under which signatures of a manifest or index lie beside it: `sha256-<hex>.sig` (sigstore/cosign, specs/SIGNATURE_SPEC.md). */
export function signatureTag(manifestDigest: Digest): string {
  return `${manifestDigest.replace(':', '-')}.sig`
}
