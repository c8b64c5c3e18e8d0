import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { CID } from 'multiformats/cid'
import { type Descriptor, MEDIA_TYPES } from '../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { parseManifest } from '../../snapshotter/oci/manifest.ts'
import type { OciLayout } from './images/oci-layout.ts'
import type { MemoryBlocks } from './memory-blocks.ts'

/** A blob of the layout. */
export const blobOf = ({ dir }: OciLayout, digest: string): Uint8Array =>
  readFileSync(join(dir, 'blobs/sha256', digest.slice(7)))

/** The directory of the layout, file by file. */
export async function addOciLayout(blocks: MemoryBlocks, { dir }: OciLayout): Promise<CID> {
  const files = readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
  return await blocks.addDirectory(
    Object.fromEntries(files.map((path) => [path.slice(dir.length + 1), readFileSync(path)])),
  )
}

/** What nerdctl push ipfs:// makes of the image: a file with a descriptor, and addresses in every descriptor. */
export async function addIpcr(blocks: MemoryBlocks, image: OciLayout): Promise<CID> {
  const addressed = async (of: Descriptor): Promise<Descriptor> => ({
    ...of,
    urls: [`ipfs://${(await blocks.addFile(blobOf(image, of.digest))).toString()}`],
  })
  const manifest = parseManifest(blobOf(image, image.manifestDigest), 'the manifest')
  if (manifest.kind !== 'manifest') throw new Error('the layout holds an index')
  const config = await addressed(manifest.config)
  const layers = await Promise.all(manifest.layers.map(addressed))
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, config, layers }))
  const urls = [`ipfs://${(await blocks.addFile(bytes)).toString()}`]
  const mediaType = MEDIA_TYPES.ociManifest
  const descriptor = { mediaType, digest: digestOf(bytes), size: bytes.length, urls }
  return await blocks.addFile(Buffer.from(JSON.stringify(descriptor)))
}
