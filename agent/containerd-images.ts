import { status } from '@grpc/grpc-js'
import { connect, type ServiceClient } from '../proto/client.ts'
import { contentContract, diffContract, imagesContract, namespacesContract } from '../proto/load.ts'
import type {
  ContentDefinition,
  ContentHandlers,
} from '../proto/types/containerd/services/content/v1/Content.ts'
import { CodedError, ImageError, SnapshotError } from '../snapshotter/errors.ts'
import type {
  ImagesOfNode,
  RememberedImage,
  RememberedLayer,
} from '../snapshotter/images-of-node.ts'
import type { Descriptor } from '../snapshotter/oci/descriptor.ts'
import { isDigest, verifyDigest } from '../snapshotter/oci/digest.ts'
import { IMAGE_CONFIG_BYTES_MAX, parseImageConfig } from '../snapshotter/oci/image-config.ts'
import { layerChainIds } from '../snapshotter/oci/layer-chain-id.ts'
import { chooseManifest, MANIFEST_BYTES_MAX, parseManifest } from '../snapshotter/oci/manifest.ts'
import { nodePlatform } from '../snapshotter/oci/platform.ts'

/** Images that are looked at, of one namespace. 1,000: the kubelet collects garbage long before. */
const IMAGES_MAX = 1_000

/** Images whose layers are remembered, by the digest of what their name leads to; some 10 KB each. */
const REMEMBERED_MAX = 1_000

type Content = ServiceClient<ContentDefinition, ContentHandlers>
/** What a name leads to. */
type Image = {
  readonly manifestDigest: string
  readonly layers: readonly (RememberedLayer & { readonly blob: Descriptor })[]
}

/** An image by one of its names. */
export type NamedImage = Image & { readonly reference: string }

/** The images of all namespaces of containerd, as its metadata and content stores have them. */
export class ContainerdImages implements ImagesOfNode {
  readonly #socketPath: string
  readonly #images = new Map<string, Image>()

  constructor(socketPath: string) {
    this.#socketPath = socketPath
  }

  /** Rejects with CodedError UNAVAILABLE if containerd does not answer. */
  async imagesWith(layerChainId: string, signal: AbortSignal): Promise<RememberedImage[]> {
    try {
      using namespaces = connect(namespacesContract(), this.#socketPath)
      const listed = await namespaces.calls.List({}, { signal })
      const found: RememberedImage[] = []
      for (const { name } of listed.namespaces) {
        found.push(...(await this.#imagesIn(name, layerChainId, signal)))
      }
      return found
    } catch (error) {
      signal.throwIfAborted()
      const why = error instanceof Error ? error.message : String(error)
      throw new CodedError(
        'UNAVAILABLE',
        `containerd at ${this.#socketPath} cannot be asked for its images: ${why}`,
        {},
        error,
      )
    }
  }

  /** The images of a namespace that containerd has enough of to say what their layers are. Rejects with gRPC's ServiceError. */
  async imagesOf(namespace: string, signal: AbortSignal): Promise<NamedImage[]> {
    const headers = { 'containerd-namespace': namespace }
    using images = connect(imagesContract(), this.#socketPath, headers)
    using content = connect(contentContract(), this.#socketPath, headers)
    const listed = await images.calls.List({}, { signal })
    const found: NamedImage[] = []
    for (const { name, target } of listed.images.slice(0, IMAGES_MAX)) {
      const digest = target?.digest ?? ''
      // CRI has the config's digest for a name too, which says nothing of where an image is from.
      if (isDigest(name)) continue
      const image = this.#images.get(digest) ?? (await imageAt(digest, { content, signal }))
      if (image === undefined) continue
      if (this.#images.size >= REMEMBERED_MAX) this.#images.clear()
      this.#images.set(digest, image)
      found.push({ reference: name, ...image })
    }
    return found
  }

  async #imagesIn(
    namespace: string,
    layerChainId: string,
    signal: AbortSignal,
  ): Promise<RememberedImage[]> {
    const found: RememberedImage[] = []
    for (const { reference, ...image } of await this.imagesOf(namespace, signal)) {
      if (!image.layers.some((layer) => layer.layerChainId === layerChainId)) continue
      found.push({
        reference,
        ...image,
        unpack: (layer, mounts, signal) => {
          const blob = image.layers.find(({ digest }) => digest === layer.digest)?.blob
          return this.#unpack({ namespace, layer, blob, mounts }, signal)
        },
      })
    }
    return found
  }

  async #unpack(
    request: {
      readonly namespace: string
      readonly layer: RememberedLayer
      readonly blob: Descriptor | undefined
      readonly mounts: Parameters<RememberedImage['unpack']>[1]
    },
    signal: AbortSignal,
  ): Promise<void> {
    const { namespace, layer, blob, mounts } = request
    using diff = connect(diffContract(), this.#socketPath, { 'containerd-namespace': namespace })
    try {
      const { applied } = await diff.calls.Apply(
        {
          diff: {
            mediaType: blob?.mediaType ?? '',
            digest: layer.digest,
            size: String(blob?.size ?? 0),
          },
          mounts: mounts.map(({ type, source, options }) => ({
            type,
            source,
            options: [...options],
          })),
        },
        { signal },
      )
      if (applied?.digest === layer.diffId) return
    } catch (error) {
      signal.throwIfAborted()
      throw new SnapshotError(
        'NOT_FOUND',
        `layer ${layer.digest} cannot be unpacked anew by containerd: ${error instanceof Error ? error.message : String(error)}`,
        { digest: layer.digest },
      )
    }
    throw new SnapshotError(
      'DATA_LOSS',
      `layer ${layer.digest} was unpacked anew by containerd, and is not the tar ${layer.diffId} that its image names`,
      { digest: layer.digest },
    )
  }
}

/** Undefined if it is no image, or not all here that says what its layers are. */
async function imageAt(
  digest: string,
  { content, signal }: { readonly content: Content; readonly signal: AbortSignal },
): Promise<Image | undefined> {
  const read = (of: string, bytesMax: number): Promise<Buffer> =>
    readBlob(of, bytesMax, { content, signal })
  try {
    let manifestDigest = digest
    let manifest = parseManifest(await read(digest, MANIFEST_BYTES_MAX), digest)
    if (manifest.kind === 'index') {
      manifestDigest = chooseManifest(manifest, nodePlatform(), digest).digest
      manifest = parseManifest(await read(manifestDigest, MANIFEST_BYTES_MAX), manifestDigest)
      if (manifest.kind === 'index') return undefined
    }
    const configDigest = manifest.config.digest
    const config = parseImageConfig(await read(configDigest, IMAGE_CONFIG_BYTES_MAX), configDigest)
    const chainIds = layerChainIds(config.diffIds)
    const layers = manifest.layers.flatMap((blob, index) => {
      const [diffId, layerChainId] = [config.diffIds[index], chainIds[index]]
      if (diffId === undefined || layerChainId === undefined) return []
      return [{ digest: blob.digest, diffId, layerChainId, blob }]
    })
    return { manifestDigest, layers }
  } catch (error) {
    signal.throwIfAborted()
    if (error instanceof CodedError) return undefined
    // What containerd does not have, it has of another platform, or not any more.
    const isMissing = error instanceof Error && 'code' in error && error.code === status.NOT_FOUND
    if (isMissing) return undefined
    throw error
  }
}

async function readBlob(
  digest: string,
  bytesMax: number,
  { content, signal }: { readonly content: Content; readonly signal: AbortSignal },
): Promise<Buffer> {
  if (!isDigest(digest)) throw new ImageError('INVALID_ARGUMENT', `'${digest}' is no digest`)
  const pieces: Uint8Array[] = []
  let bytes = 0
  for await (const { data } of content.calls.Read({ digest }, { signal })) {
    bytes += data.length
    if (bytes > bytesMax) {
      throw new ImageError('RESOURCE_EXHAUSTED', `${digest} has more than ${bytesMax} bytes`)
    }
    pieces.push(data)
  }
  const whole = Buffer.concat(pieces)
  verifyDigest(whole, digest, digest)
  return whole
}
