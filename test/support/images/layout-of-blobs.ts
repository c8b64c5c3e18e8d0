import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { type ImageProcess, type OciLayout, writeOciLayout } from './oci-layout.ts'

/** A layer in memory, as a manifest names it. */
export type BlobInMemory = {
  readonly blob: Uint8Array
  readonly diffId: string
  readonly mediaType?: string
  readonly annotations?: Readonly<Record<string, string>>
}

/** An OCI layout in `dir` of these layers, lowest first. */
export function layoutOfBlobs(
  dir: string,
  layers: readonly BlobInMemory[],
  { process = {}, tag = 'latest' }: { process?: ImageProcess; tag?: string } = {},
): OciLayout {
  const blobs = `${dir}-blobs`
  mkdirSync(blobs)
  return writeOciLayout(dir, {
    process,
    tag,
    layers: layers.map(({ blob, diffId, mediaType, annotations }) => {
      const digest = digestOf(blob)
      const path = join(blobs, digest.slice('sha256:'.length))
      writeFileSync(path, blob)
      return {
        path,
        digest,
        diffId,
        mediaType: mediaType ?? typeOf(blob),
        size: blob.length,
        tarSize: 0,
        ...(annotations && { annotations }),
      }
    }),
  })
}

/** By the first byte, which gzip and zstd have each of their own. */
function typeOf([first]: Uint8Array): string {
  const tar = 'application/vnd.oci.image.layer.v1.tar'
  return first === 0x1f ? `${tar}+gzip` : first === 0x28 ? `${tar}+zstd` : tar
}
