import { createReadStream } from 'node:fs'
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { ImageError } from '../../errors.ts'
import type { Descriptor } from '../../oci/descriptor.ts'
import type { Digest } from '../../oci/digest.ts'
import { parseDigest } from '../../oci/digest.ts'
import { MANIFEST_BYTES_MAX, parseManifest } from '../../oci/manifest.ts'
import type { ImageToPush } from '../image-to-push.ts'

/** Files of an OCI layout by path; `undefined` if there is none. A directory on disk, or the members of a tar. */
export interface LayoutFiles {
  /** For messages: where the layout is. */
  readonly name: string
  readSmall(path: string, bytesMax: number): Promise<Uint8Array | undefined>
  stream(path: string, signal: AbortSignal): AsyncIterable<Uint8Array> | undefined
}

/**
 * Opens the image of an OCI layout (OCI image-spec 1.1, image-layout.md). With several in its index.json, `name` must be the
 * `org.opencontainers.image.ref.name` of one, or its digest. Rejects with ImageError NOT_FOUND or INVALID_ARGUMENT.
 */
export async function openOciLayout(files: LayoutFiles, name?: string): Promise<ImageToPush> {
  const indexBytes = await files.readSmall('index.json', MANIFEST_BYTES_MAX)
  if (indexBytes === undefined) {
    throw new ImageError('NOT_FOUND', `${files.name} is no OCI layout: it has no index.json`)
  }
  const index = parseManifest(indexBytes, `${files.name}: index.json`)
  if (index.kind !== 'index') {
    throw new ImageError(
      'INVALID_ARGUMENT',
      `${files.name}: index.json is a manifest, not an index`,
    )
  }
  const { digest } = chosen(index.manifests, files, name)
  const manifest = await files.readSmall(blobPath(digest), MANIFEST_BYTES_MAX)
  if (manifest === undefined) {
    throw new ImageError('NOT_FOUND', `${files.name} lacks the blob ${digest} of its index.json`)
  }
  return {
    manifest,
    async *blob(digest, signal) {
      const stream = files.stream(blobPath(digest), signal)
      if (stream === undefined) {
        throw new ImageError('NOT_FOUND', `${files.name} has no blob ${digest}`, { digest })
      }
      yield* stream
    },
  }
}

/** The files of an OCI layout in a directory. Rejects with ImageError NOT_FOUND if there is none. */
export async function layoutDirectory(path: string): Promise<LayoutFiles> {
  const found = await stat(path).catch(() => undefined)
  if (found?.isDirectory() !== true) {
    throw new ImageError('NOT_FOUND', `${path} is no directory with an OCI layout`)
  }
  return {
    name: path,
    async readSmall(file, bytesMax) {
      const whole = join(path, file)
      const size = await stat(whole).then(
        (found) => found.size,
        () => undefined,
      )
      if (size === undefined) return undefined
      if (size <= bytesMax) return readFile(whole)
      const message = `${whole} has ${size} bytes, the limit is ${bytesMax}`
      throw new ImageError('RESOURCE_EXHAUSTED', message)
    },
    async *stream(file, signal) {
      try {
        for await (const bytes of createReadStream(join(path, file), {
          highWaterMark: 1 << 18,
          signal,
        })) {
          yield bytes as Buffer
        }
      } catch (cause) {
        if (!isMissing(cause)) throw cause
        throw new ImageError('NOT_FOUND', `${path} has no file ${file}`, {}, cause)
      }
    },
  }
}

const REF_NAME_ANNOTATION = 'org.opencontainers.image.ref.name'

function chosen(
  manifests: readonly Descriptor[],
  files: LayoutFiles,
  name: string | undefined,
): Descriptor {
  const names = manifests.map(
    ({ annotations, digest }) => annotations?.[REF_NAME_ANNOTATION] ?? digest,
  )
  const fitting =
    name === undefined
      ? manifests
      : manifests.filter(({ digest }, index) => names[index] === name || digest === name)
  const [only, ...more] = fitting
  if (only !== undefined && more.every(({ digest }) => digest === only.digest)) return only
  const wanted = name === undefined ? 'which one to push must be said' : `not one named ${name}`
  const message = `${files.name} has ${manifests.length} images (${names.slice(0, 20).join(', ')}), ${wanted}`
  throw new ImageError(only === undefined ? 'NOT_FOUND' : 'INVALID_ARGUMENT', message)
}

/** A digest's characters are checked, so that it cannot lead out of the layout. */
function blobPath(digest: Digest): string {
  const { algorithm, hex } = parseDigest(digest)
  return `blobs/${algorithm}/${hex}`
}

function isMissing(cause: unknown): boolean {
  return cause instanceof Error && 'code' in cause && cause.code === 'ENOENT'
}
