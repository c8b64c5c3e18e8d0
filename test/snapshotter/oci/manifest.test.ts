import { expect, test } from 'vitest'
import { MEDIA_TYPES } from '../../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { parseImageConfig } from '../../../snapshotter/oci/image-config.ts'
import {
  checkRunnable,
  chooseManifest,
  LAYERS_MAX,
  MANIFEST_BYTES_MAX,
  parseManifest,
} from '../../../snapshotter/oci/manifest.ts'
import { failureOf } from '../../support/failure-of.ts'

const digest = digestOf(Buffer.from('x'))
const layer = { mediaType: 'application/vnd.oci.image.layer.v1.tar', digest, size: 7 }
const config = { mediaType: MEDIA_TYPES.ociConfig, digest, size: 3 }

const json = (value: unknown): Uint8Array => Buffer.from(JSON.stringify(value))
const parse = (value: unknown): ReturnType<typeof parseManifest> =>
  parseManifest(json(value), 'manifest m')

test('an OCI and a Docker schema 2 manifest are read, with or without a media type of their own', () => {
  const oci = parse({ schemaVersion: 2, config, layers: [layer] })
  expect(oci).toMatchObject({ kind: 'manifest', mediaType: MEDIA_TYPES.ociManifest, config })
  const docker = { schemaVersion: 2, config: { ...config, mediaType: MEDIA_TYPES.dockerConfig } }
  expect(parse({ ...docker, layers: [] }).mediaType).toBe(MEDIA_TYPES.dockerManifest)
  const said = { ...docker, mediaType: MEDIA_TYPES.dockerManifest, layers: [layer] }
  expect(parse(said)).toMatchObject({ kind: 'manifest', mediaType: MEDIA_TYPES.dockerManifest })
})

test('fields that are null or unknown are no harm', () => {
  const written = { ...layer, urls: null, annotations: null, platform: null, data: 'eA==' }
  const manifest = parse({ schemaVersion: 2, config, layers: [written], annotations: null, x: 1 })
  expect(manifest).toMatchObject({ layers: [{ digest, size: 7, urls: undefined }] })
})

test('an index is read and the manifest for this platform chosen from it', () => {
  const entry = (architecture: string, variant?: string): object => ({
    mediaType: MEDIA_TYPES.ociManifest,
    digest: digestOf(Buffer.from(`${architecture}${variant}`)),
    size: 1,
    platform: { os: 'linux', architecture, ...(variant === undefined ? {} : { variant }) },
  })
  const index = parse({
    schemaVersion: 2,
    manifests: [entry('unknown'), entry('aarch64', 'v8'), entry('x86_64')],
  })
  if (index.kind !== 'index') throw new Error('not an index')
  expect(index.mediaType).toBe(MEDIA_TYPES.ociIndex)
  const amd64 = chooseManifest(index, { os: 'linux', architecture: 'amd64' }, 'index i')
  expect(amd64.digest).toBe(digestOf(Buffer.from('x86_64undefined')))
  const arm64 = chooseManifest(index, { os: 'linux', architecture: 'arm64' }, 'index i')
  expect(arm64.digest).toBe(digestOf(Buffer.from('aarch64v8')))
  expect(() => chooseManifest(index, { os: 'linux', architecture: 's390x' }, 'index i')).toThrow(
    /index i has no image for linux\/s390x, only for linux\/unknown, linux\/aarch64\/v8/,
  )
})

test.each([
  ['not JSON', Buffer.from('\u001f\u008b\u0008'), /manifest m is not JSON/, 'INVALID_ARGUMENT'],
  ['not UTF-8', Buffer.from([0x22, 0xff, 0x22]), /is not JSON/, 'INVALID_ARGUMENT'],
  ['a list', json([]), /expected object/, 'INVALID_ARGUMENT'],
  ['neither', json({ hello: 1 }), /neither a manifest/, 'INVALID_ARGUMENT'],
  ['schema 1', json({ schemaVersion: 1, fsLayers: [] }), /schema 1 manifest/, 'UNIMPLEMENTED'],
  [
    'a negative size',
    json({ schemaVersion: 2, config, layers: [layer, { ...layer, size: -1 }] }),
    /layers\.1\.size/,
    'INVALID_ARGUMENT',
  ],
  [
    'a size beyond 2^53',
    json({ schemaVersion: 2, config, layers: [{ ...layer, size: 2 ** 60 }] }),
    /layers\.0\.size/,
    'INVALID_ARGUMENT',
  ],
  [
    'a digest that is a path',
    json({ schemaVersion: 2, config, layers: [{ ...layer, digest: 'sha256:../../x' }] }),
    /layers\.0\.digest: must be sha256/,
    'INVALID_ARGUMENT',
  ],
  [
    'too many layers',
    json({ schemaVersion: 2, config, layers: Array.from({ length: LAYERS_MAX + 1 }, () => layer) }),
    /layers/,
    'INVALID_ARGUMENT',
  ],
  [
    'another media type than its shape',
    json({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, config, layers: [] }),
    /has the fields of a manifest but says it is/,
    'INVALID_ARGUMENT',
  ],
  ['5 MiB', Buffer.alloc(MANIFEST_BYTES_MAX + 1), /a manifest may have/, 'RESOURCE_EXHAUSTED'],
])('a manifest that is %s is refused with the reason', async (_, bytes, reason, code) => {
  const failure = await failureOf(() => parseManifest(bytes, 'manifest m'))
  expect(failure.message).toMatch(reason)
  expect(failure).toMatchObject({ name: 'ImageError', code })
})

test('an artifact that is no image is told by the media type of its config', () => {
  const helm = { ...config, mediaType: 'application/vnd.cncf.helm.config.v1+json' }
  const manifest = parse({ schemaVersion: 2, config: helm, layers: [layer] })
  if (manifest.kind !== 'manifest') throw new Error('not a manifest')
  expect(() => checkRunnable(manifest, 'manifest m')).toThrow(
    /manifest m is not a container image: its config has media type application\/vnd\.cncf\.helm/,
  )
})

test('an image config gives diff IDs and platform, and a null list is an image without layers', () => {
  const written = { architecture: 'arm', variant: 'v7', os: 'linux' }
  const rootfs = { type: 'layers', diff_ids: [digest] }
  expect(parseImageConfig(json({ ...written, rootfs }), 'config c')).toEqual({
    diffIds: [digest],
    platform: { os: 'linux', architecture: 'arm', variant: 'v7' },
  })
  const empty = { ...written, rootfs: { type: 'layers', diff_ids: null } }
  expect(parseImageConfig(json(empty), 'config c').diffIds).toEqual([])
  expect(() => parseImageConfig(json({ ...written }), 'config c')).toThrow(/config c: rootfs/)
  const bad = { ...written, rootfs: { type: 'layers', diff_ids: ['sha256:1'] } }
  expect(() => parseImageConfig(json(bad), 'config c')).toThrow(/rootfs\.diff_ids\.0/)
})
