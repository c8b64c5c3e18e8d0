import { z } from 'zod'
import { ImageError } from '../errors.ts'
import { type Descriptor, descriptorSchema, MEDIA_TYPES } from './descriptor.ts'
import { parseJson } from './parse-json.ts'
import { choosePlatform, formatPlatform, type Platform } from './platform.ts'

/** Largest manifest or index, in bytes: 4 MiB, what registries and containerd accept (OCI distribution-spec, "Pushing Manifests"). */
export const MANIFEST_BYTES_MAX: number = 4 * 1024 * 1024

/** Most layers of an image. Overlayfs takes 500 lower directories at most; builders stop at 127. */
export const LAYERS_MAX = 1024

/** Most entries of an index: some 60 platforms with an attestation each, and room. */
export const INDEX_ENTRIES_MAX = 1024

/** What signatures and attestations hold for layers, some under the config of an image (sigstore/cosign; in-toto; DSSE). */
const STATEMENTS = /^application\/vnd\.(?:dev\.cosign|dev\.sigstore|in-toto|dsse)/

/** One image: its config and its layers, lowest first. */
export type ImageManifest = {
  readonly kind: 'manifest'
  readonly mediaType: string
  readonly config: Descriptor
  readonly layers: readonly Descriptor[]
  readonly annotations?: Readonly<Record<string, string>> | undefined
}

/** Several images of one name, usually one for each platform. */
export type ImageIndex = {
  readonly kind: 'index'
  readonly mediaType: string
  readonly manifests: readonly Descriptor[]
  readonly annotations?: Readonly<Record<string, string>> | undefined
}

const annotations = z
  .record(z.string(), z.string())
  .nullish()
  .transform((value) => value ?? undefined)

const manifestSchema = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  config: descriptorSchema,
  layers: z.array(descriptorSchema).max(LAYERS_MAX),
  annotations,
})

const indexSchema = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  manifests: z.array(descriptorSchema).max(INDEX_ENTRIES_MAX),
  annotations,
})

/** Only what tells the documents apart; each schema above then reads its own. */
const shapeSchema = z.object({
  schemaVersion: z.number().optional(),
  mediaType: z.string().optional(),
  fsLayers: z.unknown().optional(),
  config: z.unknown().optional(),
  layers: z.unknown().optional(),
  manifests: z.unknown().optional(),
})

/**
 * Reads an OCI or Docker schema 2 manifest or index; `what` names it in errors. The shape decides and not the media type,
 * which IPDR does not store. Throws ImageError: RESOURCE_EXHAUSTED (over a limit), UNIMPLEMENTED (schema 1), INVALID_ARGUMENT.
 */
export function parseManifest(bytes: Uint8Array, what: string): ImageManifest | ImageIndex {
  if (bytes.length > MANIFEST_BYTES_MAX) {
    throw new ImageError(
      'RESOURCE_EXHAUSTED',
      `${what} has ${bytes.length} bytes, a manifest may have ${MANIFEST_BYTES_MAX}`,
      { bytes: bytes.length, bytesMax: MANIFEST_BYTES_MAX },
    )
  }
  const shape = parseJson(bytes, shapeSchema, what)
  if (shape.schemaVersion === 1 || shape.fsLayers !== undefined) {
    throw new ImageError(
      'UNIMPLEMENTED',
      `${what} is a Docker schema 1 manifest, which containerd no longer runs either; push the image again with a current tool`,
    )
  }
  if (shape.manifests !== undefined && shape.layers === undefined) {
    const { mediaType, manifests, annotations } = parseJson(bytes, indexSchema, what)
    checkMediaType(mediaType, [MEDIA_TYPES.ociIndex, MEDIA_TYPES.dockerIndex], what, 'an index')
    return { kind: 'index', mediaType: mediaType ?? MEDIA_TYPES.ociIndex, manifests, annotations }
  }
  if (shape.config === undefined && shape.layers === undefined) {
    throw new ImageError(
      'INVALID_ARGUMENT',
      `${what} is JSON, but neither a manifest (config, layers) nor an index (manifests)`,
    )
  }
  const { mediaType, config, layers, annotations } = parseJson(bytes, manifestSchema, what)
  checkMediaType(
    mediaType,
    [MEDIA_TYPES.ociManifest, MEDIA_TYPES.dockerManifest],
    what,
    'a manifest',
  )
  return {
    kind: 'manifest',
    mediaType:
      mediaType ??
      (config.mediaType === MEDIA_TYPES.dockerConfig
        ? MEDIA_TYPES.dockerManifest
        : MEDIA_TYPES.ociManifest),
    config,
    layers,
    annotations,
  }
}

/**
 * Throws ImageError FAILED_PRECONDITION if the manifest is an artifact (a chart, a signature, a model) and not an image that
 * containerd can run: an image's config has one of two media types.
 */
export function checkRunnable(manifest: ImageManifest, what: string): void {
  const { mediaType } = manifest.config
  const statement = manifest.layers.find((layer) => STATEMENTS.test(layer.mediaType))
  if (statement !== undefined) {
    throw new ImageError(
      'FAILED_PRECONDITION',
      `${what} is not a container image: it holds ${statement.mediaType}, which says something of an image`,
      { mediaType: statement.mediaType },
    )
  }
  if (mediaType === MEDIA_TYPES.ociConfig || mediaType === MEDIA_TYPES.dockerConfig) return
  throw new ImageError(
    'FAILED_PRECONDITION',
    `${what} is not a container image: its config has media type ${mediaType}, an image has ${MEDIA_TYPES.ociConfig}`,
    { configMediaType: mediaType },
  )
}

/** The manifest of an index that runs on `node`. Throws ImageError NOT_FOUND, naming the platforms there are. */
export function chooseManifest(index: ImageIndex, node: Platform, what: string): Descriptor {
  const chosen = choosePlatform(index.manifests, node)
  if (chosen !== undefined) return chosen
  const offered = index.manifests.map(({ platform }) => platform && formatPlatform(platform))
  throw new ImageError(
    'NOT_FOUND',
    `${what} has no image for ${formatPlatform(node)}, only for ${[...new Set(offered)].slice(0, 20).join(', ') || 'nothing'}`,
    { platform: formatPlatform(node) },
  )
}

function checkMediaType(
  written: string | undefined,
  expected: readonly string[],
  what: string,
  shape: string,
): void {
  if (written === undefined || expected.includes(written)) return
  throw new ImageError(
    'INVALID_ARGUMENT',
    `${what} has the fields of ${shape} but says it is ${written}`,
    { mediaType: written },
  )
}
