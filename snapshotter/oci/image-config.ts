import { z } from 'zod'
import { ImageError } from '../errors.ts'
import { digestSchema } from './descriptor.ts'
import type { Digest } from './digest.ts'
import { LAYERS_MAX } from './manifest.ts'
import { parseJson } from './parse-json.ts'
import type { Platform } from './platform.ts'

/** Largest image config, in bytes: 4 MiB, as a manifest. Configs of a few KiB are usual; long build histories reach 100 KiB. */
export const IMAGE_CONFIG_BYTES_MAX: number = 4 * 1024 * 1024

/** What we need of an image's config: which uncompressed layers it stands on, and what it runs on. */
export type ImageConfig = {
  /** Digests of the uncompressed layers, lowest first. */
  readonly diffIds: readonly Digest[]
  readonly platform: Platform
}

const configSchema = z.object({
  os: z.string().default('linux'),
  architecture: z.string().default(''),
  variant: z.string().optional(),
  rootfs: z.object({
    type: z.literal('layers'),
    diff_ids: z.array(digestSchema).max(LAYERS_MAX).nullish(),
  }),
})

/** Reads an image config (OCI image-spec, config.md). Throws ImageError INVALID_ARGUMENT or RESOURCE_EXHAUSTED; `what` names it. */
export function parseImageConfig(bytes: Uint8Array, what: string): ImageConfig {
  if (bytes.length > IMAGE_CONFIG_BYTES_MAX) {
    throw new ImageError(
      'RESOURCE_EXHAUSTED',
      `${what} has ${bytes.length} bytes, an image config may have ${IMAGE_CONFIG_BYTES_MAX}`,
      { bytes: bytes.length, bytesMax: IMAGE_CONFIG_BYTES_MAX },
    )
  }
  const { os, architecture, variant, rootfs } = parseJson(bytes, configSchema, what)
  return { diffIds: rootfs.diff_ids ?? [], platform: { os, architecture, variant } }
}
