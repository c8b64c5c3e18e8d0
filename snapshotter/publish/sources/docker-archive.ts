import { createHash } from 'node:crypto'
import { z } from 'zod'
import { ImageError } from '../../errors.ts'
import { MEDIA_TYPES } from '../../oci/descriptor.ts'
import type { Digest } from '../../oci/digest.ts'
import { digestOf } from '../../oci/digest.ts'
import { IMAGE_CONFIG_BYTES_MAX } from '../../oci/image-config.ts'
import { LAYERS_MAX, MANIFEST_BYTES_MAX } from '../../oci/manifest.ts'
import { parseJson } from '../../oci/parse-json.ts'
import { cleanPath, printable } from '../../toc/entry-limits.ts'
import type { ImageToPush } from '../image-to-push.ts'
import type { TarArchive } from './tar-archive.ts'

/** What `docker save` and `podman save` write as manifest.json (moby, image/tarexport). */
const savedSchema = z.array(
  z.object({
    Config: z.string(),
    RepoTags: z.array(z.string()).nullish(),
    Layers: z.array(z.string()).max(LAYERS_MAX),
  }),
)

/**
 * Opens the image of a docker-archive. With several, `name` must be one of their RepoTags. Layers are read once, for their
 * digests, which the archive does not have. Rejects with ImageError.
 */
export async function openDockerArchive(
  archive: TarArchive,
  signal: AbortSignal,
  name?: string,
): Promise<ImageToPush> {
  const bytes = await archive.readSmall('manifest.json', MANIFEST_BYTES_MAX)
  if (bytes === undefined) {
    throw new ImageError(
      'NOT_FOUND',
      `${archive.name} is no docker-archive: it has no manifest.json`,
    )
  }
  const saved = parseJson(bytes, savedSchema, `${archive.name}: manifest.json`)
  const fitting = saved.filter(
    ({ RepoTags }) => name === undefined || RepoTags?.includes(name) === true,
  )
  const [image, ...more] = fitting
  if (image === undefined || more.length > 0) {
    const tags = saved.flatMap(({ RepoTags, Config }) => RepoTags ?? [Config])
    const wanted = name === undefined ? 'which one to push must be said' : `not one named ${name}`
    const message = `${archive.name} has ${saved.length} images (${tags.slice(0, 20).join(', ')}), ${wanted}`
    throw new ImageError(image === undefined ? 'NOT_FOUND' : 'INVALID_ARGUMENT', message)
  }
  const config = await archive.readSmall(memberPath(image.Config), IMAGE_CONFIG_BYTES_MAX)
  if (config === undefined) throw missing(archive, image.Config)
  const paths = new Map<Digest, string>()
  const layers = []
  for (const layer of image.Layers) {
    const path = memberPath(layer)
    const { digest, size } = await digestOfMember(archive, path, signal)
    paths.set(digest, path)
    layers.push({ mediaType: 'application/vnd.oci.image.layer.v1.tar', digest, size })
  }
  const configDigest = digestOf(config)
  const manifest = {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    config: { mediaType: MEDIA_TYPES.ociConfig, digest: configDigest, size: config.length },
    layers,
  }
  return {
    manifest: Buffer.from(JSON.stringify(manifest)),
    async *blob(digest, signal) {
      if (digest === configDigest) {
        yield config
        return
      }
      const path = paths.get(digest)
      const stream = path === undefined ? undefined : archive.stream(path, signal)
      if (stream === undefined) {
        throw new ImageError('NOT_FOUND', `${archive.name} has no blob ${digest}`, { digest })
      }
      yield* stream
    },
  }
}

async function digestOfMember(
  archive: TarArchive,
  path: string,
  signal: AbortSignal,
): Promise<{ digest: Digest; size: number }> {
  const stream = archive.stream(path, signal)
  if (stream === undefined) throw missing(archive, path)
  const sha256 = createHash('sha256')
  let size = 0
  for await (const bytes of stream) {
    sha256.update(bytes)
    size += bytes.length
  }
  return { digest: `sha256:${sha256.digest('hex')}`, size }
}

function memberPath(name: string): string {
  return cleanPath(Buffer.from(name).toString('latin1'), { path: 'manifest.json', offset: 0 })
}

function missing(archive: TarArchive, path: string): ImageError {
  const message = `${archive.name} lacks ${printable(path)}, which its manifest.json names`
  return new ImageError('NOT_FOUND', message)
}
