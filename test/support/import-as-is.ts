import { createReadStream, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { BlockRepository } from '../../agent/ipfs/repository.ts'
import { type Digest, digestOf } from '../../snapshotter/oci/digest.ts'
import { parseManifest } from '../../snapshotter/oci/manifest.ts'
import {
  ImageDirectory,
  type ImportedNode,
  importBlob,
} from '../../snapshotter/publish/import-image.ts'
import type { OciLayout } from './images/oci-layout.ts'

/**
 * Imports the layout into the repository as publishers before ours do: its manifest, config and layers byte by byte as they are,
 * in leaves of 256 KiB, under `manifests/` and `blobs/`. Blobs in `instead` lie there in place of those of their digests.
 * Gives back the root CID.
 */
export async function importAsIs(
  { dir, tag, manifestDigest }: OciLayout,
  directory: string,
  instead: ReadonlyMap<string, Uint8Array> = new Map(),
): Promise<string> {
  const { signal } = new AbortController()
  await using repository = await BlockRepository.open(directory)
  const image = new ImageDirectory()
  const pathOf = (digest: string): string => join(dir, 'blobs/sha256', digest.slice(7))
  const contentOf = async function* (digest: string): AsyncGenerator<Uint8Array, void> {
    const other = instead.get(digest)
    if (other === undefined) yield* createReadStream(pathOf(digest))
    else yield other
  }
  const importFile = (digest: string): Promise<ImportedNode> =>
    importBlob(contentOf(digest), 'kubo', repository, signal)
  const bytes = readFileSync(pathOf(manifestDigest))
  const manifest = parseManifest(bytes, manifestDigest)
  if (manifest.kind !== 'manifest') throw new Error(`${dir} holds an index`)
  image.addManifest(digestOf(bytes), await importFile(manifestDigest), tag)
  const digests = new Set<Digest>([manifest.config, ...manifest.layers].map((of) => of.digest))
  for (const digest of digests) image.addBlob(digest, await importFile(digest))
  const { cid } = await image.write(repository, signal)
  return cid.toString()
}
