import { MEDIA_TYPES } from '../../snapshotter/oci/descriptor.ts'
import { type Digest, digestOf } from '../../snapshotter/oci/digest.ts'
import type { TestFiles } from './memory-blocks.ts'

/** An image in the IPDR layout, as files by path, and what is in it. */
export type TestImage = {
  readonly files: TestFiles
  readonly manifest: Uint8Array
  readonly manifestDigest: Digest
  readonly config: Uint8Array
  readonly configDigest: Digest
  readonly layers: readonly { digest: Digest; bytes: Uint8Array }[]
}

/** An OCI image of the given layers (taken for plain tars), under the tag `latest`. */
export function testImage(
  layers: readonly Uint8Array[],
  diffIds: readonly Digest[] = [],
): TestImage {
  const config = Buffer.from(
    JSON.stringify({
      architecture: 'amd64',
      os: 'linux',
      rootfs: { type: 'layers', diff_ids: diffIds },
    }),
  )
  const described = layers.map((bytes) => ({ digest: digestOf(bytes), bytes }))
  const configDigest = digestOf(config)
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociManifest,
      config: { mediaType: MEDIA_TYPES.ociConfig, digest: configDigest, size: config.length },
      layers: described.map(({ digest, bytes }) => ({
        mediaType: 'application/vnd.oci.image.layer.v1.tar',
        digest,
        size: bytes.length,
      })),
    }),
  )
  const manifestDigest = digestOf(manifest)
  return {
    files: {
      'manifests/latest': manifest,
      [`manifests/${manifestDigest}`]: manifest,
      [`blobs/${configDigest}`]: config,
      ...Object.fromEntries(described.map(({ digest, bytes }) => [`blobs/${digest}`, bytes])),
    },
    manifest,
    manifestDigest,
    config,
    configDigest,
    layers: described,
  }
}
