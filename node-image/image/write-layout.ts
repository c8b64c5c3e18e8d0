import { createHash } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Layer } from './write-layer.ts'

/** What an image is told beside its layers. */
export type ImageConfig = {
  readonly Entrypoint: readonly string[]
  readonly Cmd: readonly string[]
  readonly Env: readonly string[]
  readonly WorkingDir: string
  readonly Labels: Readonly<Record<string, string>>
}

/** Writes config, manifest and index beside the layers in `dir`/blobs/sha256: an OCI image layout. Gives back the manifest's digest. */
export function writeLayout(
  dir: string,
  image: {
    readonly layers: readonly Layer[]
    readonly config: ImageConfig
    readonly created: Date
    /** Of the image in the layout, like `0.1.0`. */
    readonly tag: string
  },
): { readonly digest: string; readonly size: number } {
  const { layers, config, tag } = image
  const created = image.created.toISOString()
  const architecture = process.arch === 'x64' ? 'amd64' : process.arch
  const platform = { architecture, os: 'linux' }
  const imageConfig = writeBlob(dir, {
    created,
    ...platform,
    config,
    rootfs: { type: 'layers', diff_ids: layers.map(({ diffId }) => diffId) },
    history: layers.map(({ name }) => ({ created, created_by: `make image: ${name}` })),
  })
  const mediaType = 'application/vnd.oci.image.manifest.v1+json'
  const manifest = writeBlob(dir, {
    schemaVersion: 2,
    mediaType,
    config: { mediaType: 'application/vnd.oci.image.config.v1+json', ...imageConfig },
    layers: layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size })),
  })
  const annotations = { 'org.opencontainers.image.ref.name': tag }
  writeJson(join(dir, 'index.json'), {
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.index.v1+json',
    manifests: [{ mediaType, ...manifest, platform, annotations }],
  })
  writeJson(join(dir, 'oci-layout'), { imageLayoutVersion: '1.0.0' })
  const bytes = layers.reduce((sum, layer) => sum + layer.size, manifest.size + imageConfig.size)
  return { digest: manifest.digest, size: bytes }
}

function writeBlob(dir: string, value: unknown): { digest: string; size: number } {
  const text = JSON.stringify(value)
  const hex = createHash('sha256').update(text).digest('hex')
  writeFileSync(join(dir, 'blobs/sha256', hex), text)
  return { digest: `sha256:${hex}`, size: Buffer.byteLength(text) }
}

function writeJson(path: string, value: unknown): void {
  writeFileSync(path, JSON.stringify(value))
}
