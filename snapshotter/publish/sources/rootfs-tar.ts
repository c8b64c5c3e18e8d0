import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { ImageError } from '../../errors.ts'
import { MEDIA_TYPES } from '../../oci/descriptor.ts'
import type { Digest } from '../../oci/digest.ts'
import { digestOf } from '../../oci/digest.ts'
import { formatPlatform, nodePlatform } from '../../oci/platform.ts'
import type { ImageToPush } from '../image-to-push.ts'

/** An image of one layer, the uncompressed tar of a root filesystem at `path`, for this machine's platform. */
export async function openRootfsTar(path: string, signal: AbortSignal): Promise<ImageToPush> {
  const { size } = await stat(path)
  const digest = await digestOfFile(path, signal)
  const { os, architecture, variant } = nodePlatform()
  const config = Buffer.from(
    JSON.stringify({
      architecture,
      os,
      ...(variant === undefined ? {} : { variant }),
      config: {},
      rootfs: { type: 'layers', diff_ids: [digest] },
      history: [
        {
          created_by: `ipdr push of a root filesystem for ${formatPlatform({ os, architecture })}`,
        },
      ],
    }),
  )
  const configDigest = digestOf(config)
  const manifest = {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    config: { mediaType: MEDIA_TYPES.ociConfig, digest: configDigest, size: config.length },
    layers: [{ mediaType: 'application/vnd.oci.image.layer.v1.tar', digest, size }],
  }
  return {
    manifest: Buffer.from(JSON.stringify(manifest)),
    async *blob(wanted, signal) {
      if (wanted === configDigest) yield config
      else if (wanted === digest) yield* fileBytes(path, signal)
      else throw new ImageError('NOT_FOUND', `${path} has no blob ${wanted}`, { digest: wanted })
    },
  }
}

async function digestOfFile(path: string, signal: AbortSignal): Promise<Digest> {
  const sha256 = createHash('sha256')
  for await (const bytes of fileBytes(path, signal)) sha256.update(bytes)
  return `sha256:${sha256.digest('hex')}`
}

async function* fileBytes(path: string, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
  for await (const bytes of createReadStream(path, { highWaterMark: 1 << 18, signal })) {
    yield bytes as Buffer
  }
}
