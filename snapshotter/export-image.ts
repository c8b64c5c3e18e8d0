import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { type Pack, pack } from 'tar-stream'
import type { BlockSource } from './block-source.ts'
import type { IpfsImage } from './dag/ipfs-image.ts'
import { openIpfsImage } from './dag/open-ipfs-image.ts'
import type { UnixfsFile } from './dag/unixfs-file.ts'
import { ImageError } from './errors.ts'
import type { Descriptor } from './oci/descriptor.ts'
import { MEDIA_TYPES } from './oci/descriptor.ts'
import { type Digest, DigestCheck, isDigest, parseDigest } from './oci/digest.ts'
import { parseManifest } from './oci/manifest.ts'
import { IMAGE_HOST, type ImageReference } from './oci/reference.ts'

/** Annotations of image-spec (annotations.md) and of containerd (images.AnnotationImageName): what the image is called where it is imported. */
const REF_NAME = 'org.opencontainers.image.ref.name'
const IMAGE_NAME = 'io.containerd.image.name'

/** Blobs of one image: 64 platforms of 1,024 layers. */
const BLOBS_MAX = 65_536

/** An index that names indexes that name indexes; OCI's tools write one. */
const INDEX_DEPTH_MAX = 3

/** What is in an archive, and how to have it written. */
export type OciArchive = {
  /** The manifest or index that was named. */
  readonly digest: Digest
  readonly blobs: number
  /** Of all blobs, manifests among them. */
  readonly bytes: number
  /** The tar, to be read once. Fails with ImageError DATA_LOSS before the end of a blob that has not its digest, and as `BlockSource`. */
  content(onBytes: (doneBytes: number) => void): Readable
}

type Blob = { readonly digest: Digest; readonly from: Uint8Array | UnixfsFile }

/**
 * An image as OCI's image layout (image-spec, image-layout.md) in a tar, byte by byte as it was published: the manifest that is named,
 * or the index with the images of all platforms. Always the same file for one image. Rejects with ImageError: NOT_FOUND,
 * DATA_LOSS if a blob is not as long as its manifest says, RESOURCE_EXHAUSTED; and as `BlockSource`.
 */
export async function ociArchive(
  { root, selector }: ImageReference,
  { blocks, signal }: { readonly blocks: BlockSource; readonly signal: AbortSignal },
): Promise<OciArchive> {
  const request = { priority: 'background', signal } as const
  const image = await openIpfsImage(root, blocks, request)
  const blobs = new Map<Digest, Blob>()
  const { digest, mediaType, bytes } = await image.manifest(selector, request)
  await collect(image, { digest, bytes, depth: 0 }, { blobs, signal })
  const name = `${IMAGE_HOST}/${root.toV1().toString()}`
  const annotations = isDigest(selector)
    ? { [IMAGE_NAME]: `${name}@${digest}` }
    : { [REF_NAME]: selector, [IMAGE_NAME]: `${name}:${selector}` }
  const entry: Descriptor = { mediaType, digest, size: bytes.length, annotations }
  const index = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [entry] }
  const held = [...blobs.values()]
  return {
    digest,
    blobs: held.length,
    bytes: held.reduce((sum, { from }) => sum + sizeOf(from), 0),
    content: (onBytes) => {
      const tar = pack()
      fill(tar, { index, blobs: held, onBytes, signal }).catch((error: unknown) =>
        tar.destroy(error instanceof Error ? error : new Error(String(error))),
      )
      return Readable.from(tar)
    },
  }
}

/** A manifest, and all that it leads to. Manifests come before what they name, blobs in their order. */
async function collect(
  image: IpfsImage,
  found: { readonly digest: Digest; readonly bytes: Uint8Array; readonly depth: number },
  to: { readonly blobs: Map<Digest, Blob>; readonly signal: AbortSignal },
): Promise<void> {
  const { digest, bytes, depth } = found
  const { blobs, signal } = to
  if (blobs.has(digest)) return
  const what = `manifest ${digest} of ${image.root.toString()}`
  if (blobs.size >= BLOBS_MAX || depth > INDEX_DEPTH_MAX) {
    throw new ImageError('RESOURCE_EXHAUSTED', `${what}: there are too many, or they are too deep`)
  }
  blobs.set(digest, { digest, from: bytes })
  const request = { priority: 'background', signal } as const
  const document = parseManifest(bytes, what)
  if (document.kind === 'index') {
    for (const child of document.manifests) {
      const { bytes } = await image.manifest(child.digest, request)
      await collect(image, { digest: child.digest, bytes, depth: depth + 1 }, to)
    }
    return
  }
  for (const { digest, size } of [document.config, ...document.layers]) {
    if (blobs.has(digest)) continue
    const file = await image.blob(digest, request)
    if (file.size !== size) {
      throw new ImageError(
        'DATA_LOSS',
        `blob ${digest} of ${image.root.toString()} has ${file.size} bytes, its manifest says ${size}`,
        { digest, size: file.size },
      )
    }
    blobs.set(digest, { digest, from: file })
  }
}

async function fill(
  tar: Pack,
  archive: {
    readonly index: object
    readonly blobs: readonly Blob[]
    readonly onBytes: (doneBytes: number) => void
    readonly signal: AbortSignal
  },
): Promise<void> {
  const { index, blobs, onBytes, signal } = archive
  tar.entry(file('oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }))
  tar.entry(file('index.json'), JSON.stringify(index))
  let doneBytes = 0
  for (const { digest, from } of blobs) {
    const { algorithm, hex } = parseDigest(digest)
    const entry = tar.entry({ ...file(`blobs/${algorithm}/${hex}`), size: sizeOf(from) })
    const pieces = checked(digest, from, signal)
    const counted = async function* (): AsyncGenerator<Uint8Array, void> {
      for await (const piece of pieces) {
        doneBytes += piece.length
        onBytes(doneBytes)
        yield piece
      }
    }
    await pipeline(Readable.from(counted()), entry, { signal })
  }
  tar.finalize()
}

/** The bytes of a blob, the last of them only if all have its digest. */
async function* checked(
  digest: Digest,
  from: Uint8Array | UnixfsFile,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array, void> {
  const check = new DigestCheck(digest)
  const request = { priority: 'background', signal } as const
  let held: Uint8Array | undefined
  const pieces =
    from instanceof Uint8Array ? [from] : from.stream({ start: 0, end: from.size }, request)
  for await (const piece of pieces) {
    if (held !== undefined) yield held
    check.update(piece)
    held = piece
  }
  check.verify(`blob ${digest}`)
  if (held !== undefined) yield held
}

/** The same whenever it is written. */
function file(name: string): { name: string; mode: number; mtime: Date } {
  return { name, mode: 0o644, mtime: new Date(0) }
}

function sizeOf(from: Uint8Array | UnixfsFile): number {
  return from instanceof Uint8Array ? from.length : from.size
}
