import { join } from 'node:path'
import {
  credentials,
  loadPackageDefinition,
  Metadata,
  type ServiceError,
  status,
} from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import type { ContentClient } from '../../proto/types/containerd/services/content/v1/Content.ts'
import type { ImagesClient } from '../../proto/types/containerd/services/images/v1/Images.ts'
import type { ProtoGrpcType as ContentFile } from '../../proto/types/content.ts'
import type { ProtoGrpcType as ImagesFile } from '../../proto/types/images.ts'
import { CodedError, ImageError } from '../../snapshotter/errors.ts'
import { type Digest, isDigest, verifyDigest } from '../../snapshotter/oci/digest.ts'
import { MANIFEST_BYTES_MAX } from '../../snapshotter/oci/manifest.ts'
import type { ImageToPush } from '../../snapshotter/publish.ts'

/** Which image of which containerd. */
export type ContainerdPlace = {
  /** As `ctr images ls` prints it: docker.io/library/debian:12. */
  readonly name: string
  /** `k8s.io` for what the kubelet pulled, `default` for what ctr did. */
  readonly namespace: string
  readonly socketPath: string
}

/** An image in containerd's content store, read over its gRPC socket. Dispose of it to close the connections. */
export class ContainerdImage implements ImageToPush, Disposable {
  readonly manifest: Uint8Array
  readonly #content: ContentReader

  private constructor(manifest: Uint8Array, content: ContentReader) {
    this.manifest = manifest
    this.#content = content
  }

  /** Looks the name up. Rejects with ImageError: NOT_FOUND (no such name, or its manifest is gone), UNAVAILABLE (no containerd). */
  static async open(place: ContainerdPlace, signal: AbortSignal): Promise<ContainerdImage> {
    const { digest, size } = await lookUp(place, signal)
    const content = new ContentReader(place)
    try {
      if (size > MANIFEST_BYTES_MAX) {
        throw new ImageError(
          'RESOURCE_EXHAUSTED',
          `the manifest of ${place.name} has ${size} bytes, a manifest may have ${MANIFEST_BYTES_MAX}`,
          { name: place.name, bytes: size },
        )
      }
      const pieces: Uint8Array[] = []
      for await (const piece of content.read(digest, signal)) pieces.push(piece)
      const manifest = Buffer.concat(pieces)
      verifyDigest(manifest, digest, `manifest ${digest} of ${place.name}`)
      return new ContainerdImage(manifest, content)
    } catch (error) {
      content[Symbol.dispose]()
      throw error
    }
  }

  blob(digest: Digest, signal: AbortSignal): AsyncIterable<Uint8Array> {
    return this.#content.read(digest, signal)
  }

  [Symbol.dispose](): void {
    this.#content[Symbol.dispose]()
  }
}

/** Blobs of one namespace of containerd, by digest. */
class ContentReader implements Disposable {
  readonly #place: ContainerdPlace
  readonly #client: ContentClient

  constructor(place: ContainerdPlace) {
    this.#place = place
    const file = load('containerd/content.proto') as ContentFile
    const { Content } = file.containerd.services.content.v1
    this.#client = new Content(`unix:${place.socketPath}`, credentials.createInsecure())
  }

  async *read(digest: Digest, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
    signal.throwIfAborted()
    const call = this.#client.Read({ digest }, metadataOf(this.#place))
    const cancel = (): void => call.cancel()
    signal.addEventListener('abort', cancel)
    try {
      for await (const { data } of call) yield data
    } catch (error) {
      throw translated(error, `blob ${digest}`, this.#place)
    } finally {
      signal.removeEventListener('abort', cancel)
      call.cancel()
    }
  }

  [Symbol.dispose](): void {
    this.#client.close()
  }
}

async function lookUp(
  place: ContainerdPlace,
  signal: AbortSignal,
): Promise<{ digest: Digest; size: number }> {
  const file = load('containerd/images.proto') as ImagesFile
  const { Images } = file.containerd.services.images.v1
  const client: ImagesClient = new Images(`unix:${place.socketPath}`, credentials.createInsecure())
  const { promise, resolve, reject } = Promise.withResolvers<{ digest: string; size: number }>()
  signal.throwIfAborted()
  const call = client.Get({ name: place.name }, metadataOf(place), (error, response) => {
    const target = response?.image?.target
    if (target) resolve({ digest: target.digest, size: Number(target.size) })
    else reject(error ?? new Error('containerd answered without an image'))
  })
  const cancel = (): void => call.cancel()
  signal.addEventListener('abort', cancel)
  try {
    const { digest, size } = await promise
    if (isDigest(digest)) return { digest, size }
    throw new ImageError('INVALID_ARGUMENT', `image ${place.name} leads to '${digest}', no digest`)
  } catch (error) {
    throw translated(error, `image ${place.name}`, place)
  } finally {
    signal.removeEventListener('abort', cancel)
    client.close()
  }
}

/** containerd divides images, not snapshots, by namespace; it is told in every call's metadata. */
function metadataOf({ namespace }: ContainerdPlace): Metadata {
  const metadata = new Metadata()
  metadata.set('containerd-namespace', namespace)
  return metadata
}

function translated(error: unknown, what: string, place: ContainerdPlace): unknown {
  if (error instanceof CodedError || !isServiceError(error)) return error
  const { namespace, socketPath, name } = place
  const facts = { name, namespace, socketPath }
  switch (error.code) {
    case status.NOT_FOUND:
      return new ImageError(
        'NOT_FOUND',
        `containerd has no ${what} in namespace ${namespace}; --namespace names another: k8s.io is the kubelet's`,
        facts,
        error,
      )
    case status.UNAVAILABLE:
      return new ImageError(
        'UNAVAILABLE',
        `containerd cannot be reached at ${socketPath}; is it running? --address names another socket`,
        facts,
        error,
      )
    case status.CANCELLED:
      return new ImageError('CANCELLED', `reading ${what} was cancelled`, facts, error)
    default:
      return new ImageError('INTERNAL', `containerd: ${what}: ${error.details}`, facts, error)
  }
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && 'details' in error && 'code' in error
}

/** The file's packages, by the options that the types in proto/types were generated for. */
function load(path: string): unknown {
  const definition = loadSync(path, {
    includeDirs: [join(import.meta.dirname, '../../proto')],
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  })
  return loadPackageDefinition(definition)
}
