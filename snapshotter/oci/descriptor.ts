import { z } from 'zod'
import { type Digest, isDigest } from './digest.ts'
import type { Platform } from './platform.ts'

/** Media types of OCI image-spec 1.1 (media-types.md) and of Docker's Image Manifest V2, Schema 2. */
export const MEDIA_TYPES: {
  readonly ociManifest: 'application/vnd.oci.image.manifest.v1+json'
  readonly ociIndex: 'application/vnd.oci.image.index.v1+json'
  readonly ociConfig: 'application/vnd.oci.image.config.v1+json'
  readonly dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json'
  readonly dockerIndex: 'application/vnd.docker.distribution.manifest.list.v2+json'
  readonly dockerConfig: 'application/vnd.docker.container.image.v1+json'
} = {
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  ociConfig: 'application/vnd.oci.image.config.v1+json',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerIndex: 'application/vnd.docker.distribution.manifest.list.v2+json',
  dockerConfig: 'application/vnd.docker.container.image.v1+json',
}

/** A reference to content: what it is, its digest and its size in bytes (OCI image-spec, descriptor.md). */
export type Descriptor = {
  readonly mediaType: string
  readonly digest: Digest
  readonly size: number
  readonly urls?: readonly string[] | undefined
  readonly annotations?: Readonly<Record<string, string>> | undefined
  readonly platform?: Platform | undefined
  readonly artifactType?: string | undefined
}

/** Longest media type, in characters: RFC 6838 section 4.2 allows 127 for each of the two names around the slash. */
const MEDIA_TYPE_CHARS_MAX = 255

/** Reads a digest; the refusal says how one looks. */
export const digestSchema: z.ZodType<Digest> = z.custom<Digest>(
  (value) => typeof value === 'string' && isDigest(value),
  { error: 'must be sha256: or sha512: and its hex digits in lower case' },
)

/** Reads a descriptor; fields we do not know are left out, as the spec asks of readers. */
export const descriptorSchema: z.ZodType<Descriptor> = z.object({
  mediaType: z.string().min(1).max(MEDIA_TYPE_CHARS_MAX),
  digest: digestSchema,
  size: z.int().nonnegative(),
  urls: z.array(z.string()).nullish().transform(absent),
  annotations: z.record(z.string(), z.string()).nullish().transform(absent),
  platform: z
    .object({
      os: z.string(),
      architecture: z.string(),
      variant: z.string().optional(),
    })
    .nullish()
    .transform(absent),
  artifactType: z.string().optional(),
})

// Go writers spell an absent list or map as null.
function absent<T>(value: T | null | undefined): T | undefined {
  return value ?? undefined
}
