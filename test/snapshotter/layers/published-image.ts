import { createPublicKey, type KeyObject } from 'node:crypto'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import type { CID } from 'multiformats/cid'
import { LayerEncryptor } from '../../../snapshotter/encryption/encrypt-layer.ts'
import { jweRecipient } from '../../../snapshotter/encryption/recipient.ts'
import { MEDIA_TYPES } from '../../../snapshotter/oci/descriptor.ts'
import { type Digest, digestOf } from '../../../snapshotter/oci/digest.ts'
import { layerChainIds } from '../../../snapshotter/oci/layer-chain-id.ts'
import {
  encodeLayerIndex,
  LAYER_INDEX_ANNOTATION,
  LAYER_INDEX_FRAME_VARIANT,
  layerIndexPosition,
} from '../../../snapshotter/toc/layer-index.ts'
import type { LayerToc } from '../../../snapshotter/toc/layer-toc.ts'
import { skippableFrame } from '../../../snapshotter/toc/zstd-frames.ts'
import type { MemoryBlocks } from '../../support/memory-blocks.ts'
import { writeEstargz } from '../../support/write-estargz.ts'
import { writeWholeLayer } from '../../support/write-whole-layer.ts'

/** A layer as an image of a test has it. `diffId` is what the config says, `annotations` what the manifest says. */
export type TestLayer = {
  readonly blob: Uint8Array
  readonly diffId: Digest
  readonly mediaType?: string
  readonly annotations?: Readonly<Record<string, string>>
  /** Beside the image, whether it fits or not. */
  readonly sideIndex?: Uint8Array
}

/** An image in memory, and the names by which it is asked for. */
export type PublishedImage = {
  readonly root: CID
  readonly manifest: Buffer
  readonly manifestDigest: Digest
  /** Bottom first. */
  readonly chainIds: readonly string[]
}

/** Imports an image of `layers`, bottom first, in the IPDR layout, under the tag `latest`; nothing is checked, so it can lie. */
export async function publishImage(
  blocks: MemoryBlocks,
  layers: readonly TestLayer[],
): Promise<PublishedImage> {
  const diffIds = layers.map(({ diffId }) => diffId)
  const config = Buffer.from(
    JSON.stringify({
      architecture: process.arch === 'x64' ? 'amd64' : process.arch,
      os: 'linux',
      rootfs: { type: 'layers', diff_ids: diffIds },
    }),
  )
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociManifest,
      config: {
        mediaType: MEDIA_TYPES.ociConfig,
        digest: digestOf(config),
        size: config.length,
      },
      layers: layers.map(({ blob, mediaType, annotations }) => ({
        mediaType: mediaType ?? 'application/vnd.oci.image.layer.v1.tar',
        digest: digestOf(blob),
        size: blob.length,
        ...(annotations && { annotations }),
      })),
    }),
  )
  const manifestDigest = digestOf(manifest)
  const root = await blocks.addDirectory({
    'manifests/latest': manifest,
    [`manifests/${manifestDigest}`]: manifest,
    [`blobs/${digestOf(config)}`]: config,
    ...Object.fromEntries(layers.map(({ blob }) => [`blobs/${digestOf(blob)}`, blob])),
    ...Object.fromEntries(
      layers.flatMap(({ blob, sideIndex }) =>
        sideIndex === undefined ? [] : [[`indexes/${digestOf(blob)}`, sideIndex]],
      ),
    ),
  })
  return { root, manifest, manifestDigest, chainIds: layerChainIds(diffIds).map(String) }
}

/** The tar as `ipdr push` publishes it: zstd frames with an index. */
export async function indexedLayer(tar: Uint8Array): Promise<TestLayer> {
  const { blob, written } = await writeWholeLayer(tar)
  return { blob, diffId: digestOf(tar), annotations: written.annotations }
}

/** The same without what says that it is ours: as other tools read it, and as containers/storage writes it. */
export async function chunkedLayer(tar: Uint8Array): Promise<TestLayer> {
  const layer = await indexedLayer(tar)
  const { [LAYER_INDEX_ANNOTATION]: _, ...annotations } = layer.annotations ?? {}
  return { ...layer, annotations }
}

/** The tar as stargz-snapshotter stores it; the layer's own tar has a table of contents more. */
export function estargzLayer(tar: Buffer): TestLayer {
  const { blob, annotations, tar: whole } = writeEstargz(tar)
  return { blob, annotations, diffId: digestOf(whole) }
}

export function plainLayer(tar: Uint8Array): TestLayer {
  return { blob: tar, diffId: digestOf(tar) }
}

export function gzipLayer(tar: Uint8Array): TestLayer {
  return { blob: gzipSync(tar), diffId: digestOf(tar) }
}

/** One zstd frame without an index, as other tools write it. */
export function zstdLayer(tar: Uint8Array): TestLayer {
  return { blob: zstdCompressSync(tar), diffId: digestOf(tar) }
}

/** The layer as it is encrypted for `recipients`; `mediaType` is what its manifest says, whatever it is. */
export async function encryptedLayer(
  layer: TestLayer,
  recipients: readonly KeyObject[],
  mediaType = 'application/vnd.oci.image.layer.v1.tar+gzip',
): Promise<TestLayer> {
  const encryptor = new LayerEncryptor()
  const blob = encryptor.push(layer.blob)
  const annotations = await encryptor.finish({
    plainDigest: digestOf(layer.blob),
    recipients: recipients.map((key) => jweRecipient(createPublicKey(key))),
    signal: new AbortController().signal,
  })
  return {
    ...layer,
    blob,
    mediaType: `${mediaType}+encrypted`,
    annotations: { ...layer.annotations, ...annotations },
  }
}

/** The tar with an index whose table of contents was changed by `lie`, and everything that names the index made to fit. */
export async function lyingLayer(
  tar: Uint8Array,
  lie: (toc: LayerToc) => LayerToc,
): Promise<TestLayer> {
  const { blob, written } = await writeWholeLayer(tar)
  const index = encodeLayerIndex(lie(written.toc), written.map)
  const frames = blob.subarray(0, written.map.framesEnd)
  const frame = skippableFrame(index, LAYER_INDEX_FRAME_VARIANT)
  const indexStart = frames.length + frame.length - index.length
  return {
    blob: Buffer.concat([frames, frame]),
    diffId: digestOf(tar),
    annotations: { [LAYER_INDEX_ANNOTATION]: layerIndexPosition(index, indexStart) },
  }
}
