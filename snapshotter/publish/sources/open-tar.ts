import { createWriteStream } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { decompressLayer } from '../decompress-layer.ts'
import type { ImageToPush } from '../image-to-push.ts'
import { openDockerArchive } from './docker-archive.ts'
import { openOciLayout } from './oci-layout.ts'
import { openRootfsTar } from './rootfs-tar.ts'
import { TarArchive } from './tar-archive.ts'

/** An image in a tar, open until it is disposed of. */
export type OpenedImage = ImageToPush & AsyncDisposable

/**
 * Opens the image in a tar that streams in, such as stdin: an OCI archive, a docker-archive, else the tar of a root filesystem;
 * plain, gzip or zstd. The tar is kept in a file below `spoolDirectory` until the image is disposed of, since its index may come
 * last. Rejects with ImageError, LayerError, or as the stream or the file system.
 */
export async function openTarStream(
  tar: AsyncIterable<Uint8Array>,
  options: {
    readonly spoolDirectory: string
    readonly signal: AbortSignal
    /** Which image, if the tar has several. */
    readonly name?: string
  },
): Promise<OpenedImage> {
  await using opening = new AsyncDisposableStack()
  const directory = await mkdtemp(join(options.spoolDirectory, 'push-'))
  opening.defer(() => rm(directory, { recursive: true, force: true }))
  const path = join(directory, 'image.tar')
  const { signal } = options
  const plain = Readable.from(decompressLayer(tar, signal))
  await pipeline(plain, createWriteStream(path), { signal })
  const opened = opening.use(await openTarFile(path, options))
  const kept = opening.move()
  return {
    manifest: opened.manifest,
    blob: (digest, signal) => opened.blob(digest, signal),
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

/** As `openTarStream`, for an uncompressed tar on disk, which is read where it lies. */
export async function openTarFile(
  path: string,
  { signal, name }: { readonly signal: AbortSignal; readonly name?: string },
): Promise<OpenedImage> {
  await using opening = new AsyncDisposableStack()
  const archive = opening.use(await TarArchive.open(path, signal))
  const image = await openArchive(archive, path, signal, name)
  const kept = opening.move()
  return {
    manifest: image.manifest,
    blob: (digest, signal) => image.blob(digest, signal),
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

function openArchive(
  archive: TarArchive,
  path: string,
  signal: AbortSignal,
  name: string | undefined,
): Promise<ImageToPush> {
  // A docker-archive of today is an OCI layout as well, and says more as one.
  if (archive.has('oci-layout') && archive.has('index.json')) return openOciLayout(archive, name)
  if (archive.has('manifest.json')) return openDockerArchive(archive, signal, name)
  return openRootfsTar(path, signal)
}
