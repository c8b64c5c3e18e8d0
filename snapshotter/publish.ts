import { createReadStream } from 'node:fs'
import { open, stat } from 'node:fs/promises'
import type { ImageToPush } from './publish/image-to-push.ts'
import { layoutDirectory, openOciLayout } from './publish/sources/oci-layout.ts'
import { type OpenedImage, openTarFile, openTarStream } from './publish/sources/open-tar.ts'
import { SNIFF_BYTES, sniffCompression } from './toc/sniff-compression.ts'

export type { ImageToPush } from './publish/image-to-push.ts'
export type { BlockSink } from './publish/import-image.ts'
export {
  type PushEncryption,
  type PushedImage,
  type PushedLayer,
  type PushProgress,
  pushImage,
} from './publish/push-image.ts'
export { openIpfsSource } from './publish/sources/ipfs-image.ts'
export { type OpenedImage, openTarStream } from './publish/sources/open-tar.ts'

/**
 * Opens the image at `path`: a directory with an OCI layout, or a tar (an OCI archive, a docker-archive, else a root filesystem),
 * plain or compressed. A compressed tar is unpacked below `spoolDirectory` until the image is disposed of. `name` says which, if
 * there are several. Rejects with ImageError or LayerError, or as the file system.
 */
export async function openImage(
  path: string,
  options: {
    readonly spoolDirectory: string
    readonly signal: AbortSignal
    readonly name?: string
  },
): Promise<OpenedImage> {
  const found = await stat(path)
  if (found.isDirectory()) return lasting(await openLayoutDirectory(path, options.name))
  if (found.isFile() && sniffCompression(await firstBytes(path)) === 'tar') {
    return openTarFile(path, options)
  }
  return openTarStream(createReadStream(path, { signal: options.signal }), options)
}

async function openLayoutDirectory(path: string, name?: string): Promise<ImageToPush> {
  return openOciLayout(await layoutDirectory(path), name)
}

function lasting(image: ImageToPush): OpenedImage {
  return {
    manifest: image.manifest,
    blob: (digest, signal) => image.blob(digest, signal),
    [Symbol.asyncDispose]: async () => {},
  }
}

async function firstBytes(path: string): Promise<Uint8Array> {
  await using file = await open(path)
  const { buffer, bytesRead } = await file.read(Buffer.alloc(SNIFF_BYTES), 0, SNIFF_BYTES, 0)
  return buffer.subarray(0, bytesRead)
}
