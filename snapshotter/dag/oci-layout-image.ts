import type { CID } from 'multiformats/cid'
import { z } from 'zod'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { ImageError } from '../errors.ts'
import type { Descriptor } from '../oci/descriptor.ts'
import { type Digest, isDigest, parseDigest, verifyDigest } from '../oci/digest.ts'
import { parseManifest } from '../oci/manifest.ts'
import { parseJson } from '../oci/parse-json.ts'
import { DEFAULT_TAG } from '../oci/reference.ts'
import {
  type FoundManifest,
  type IpfsImage,
  noBlob,
  noManifest,
  orUndefined,
  readManifestFile,
} from './ipfs-image.ts'
import { UnixfsFile } from './unixfs-file.ts'
import { resolveUnixfsPath } from './unixfs-path.ts'

/** Names a manifest in index.json (OCI image-spec, annotations.md). */
const REF_NAME = 'org.opencontainers.image.ref.name'

// OCI image-spec, image-layout.md: "oci-layout"; every version so far is 1.
const layoutSchema = z.object({
  imageLayoutVersion: z.string().regex(/^1\./, { error: 'must be 1.0.0' }),
})

/** An image as OCI's image layout under one UnixFS directory: `oci-layout`, `index.json` and `blobs/<algorithm>/<hex>` (image-layout.md). */
export class OciLayoutImage implements IpfsImage {
  readonly root: CID
  readonly #blocks: BlockSource
  /** Of index.json. */
  readonly #entries: readonly Descriptor[]

  private constructor(root: CID, entries: readonly Descriptor[], blocks: BlockSource) {
    this.root = root
    this.#entries = entries
    this.#blocks = blocks
  }

  /**
   * The image under `root`; undefined if it has no `oci-layout` and `index.json`. Rejects with ImageError INVALID_ARGUMENT if they
   * are there and malformed, and as `resolveUnixfsPath`.
   */
  static async open(
    root: CID,
    blocks: BlockSource,
    request: BlockRequest,
  ): Promise<OciLayoutImage | undefined> {
    const [marker, index] = await Promise.all([
      fileIn(root, ['oci-layout'], blocks, request),
      fileIn(root, ['index.json'], blocks, request),
    ])
    if (marker === undefined || index === undefined) return undefined
    const markerName = `oci-layout of ${root.toString()}`
    parseJson(await readManifestFile(marker, markerName, request), layoutSchema, markerName)
    const indexName = `index.json of ${root.toString()}`
    const document = parseManifest(await readManifestFile(index, indexName, request), indexName)
    if (document.kind === 'index') return new OciLayoutImage(root, document.manifests, blocks)
    throw new ImageError('INVALID_ARGUMENT', `${indexName} is a manifest, it must be an index`, {
      root: root.toString(),
    })
  }

  async manifest(reference: string, request: BlockRequest): Promise<FoundManifest> {
    const digest = isDigest(reference) ? reference : this.#digestOfTag(reference)
    const name = `manifest ${digest} of ${this.root.toString()}`
    const file = await this.#blobFile(digest, request)
    if (file === undefined) throw noManifest(this.root, reference, this.#tags())
    const bytes = await readManifestFile(file, name, request)
    verifyDigest(bytes, digest, name)
    return { bytes, digest, mediaType: parseManifest(bytes, name).mediaType }
  }

  async blob(digest: string, request: BlockRequest): Promise<UnixfsFile> {
    const file = await this.#blobFile(digest, request)
    if (file === undefined) throw noBlob(this.root, digest)
    return file
  }

  async blobCids(
    digests: readonly string[],
    request: BlockRequest,
  ): Promise<ReadonlyMap<string, CID>> {
    const found = new Map<string, CID>()
    for (const digest of new Set(digests)) {
      const path = resolveUnixfsPath(this.root, pathOf(digest), this.#blocks, request)
      const entry = await orUndefined(path)
      if (entry?.kind === 'file') found.set(digest, entry.cid)
    }
    return found
  }

  async tags(): Promise<string[]> {
    return this.#tags()
  }

  #blobFile(digest: string, request: BlockRequest): Promise<UnixfsFile | undefined> {
    return fileIn(this.root, pathOf(digest), this.#blocks, request)
  }

  #digestOfTag(tag: string): Digest {
    const named = this.#entries.filter(({ annotations }) => annotations?.[REF_NAME] === tag)
    const candidates = named.length === 0 && tag === DEFAULT_TAG ? this.#entries : named
    const [only, another] = [...new Set(candidates.map(({ digest }) => digest))]
    if (only === undefined) throw noManifest(this.root, tag, this.#tags())
    if (another === undefined) return only
    if (named.length === 0) throw noManifest(this.root, tag, this.#tags())
    throw new ImageError(
      'FAILED_PRECONDITION',
      `image ${this.root.toString()} has several manifests under ${tag}: ${only}, ${another}; ask for one by its digest`,
      { root: this.root.toString(), tag },
    )
  }

  #tags(): string[] {
    const names = this.#entries.flatMap(({ annotations }) => annotations?.[REF_NAME] ?? [])
    if (names.length === 0 && this.#entries.length === 1) return [DEFAULT_TAG]
    return [...new Set(names)].toSorted()
  }
}

function pathOf(digest: string): string[] {
  const { algorithm, hex } = parseDigest(digest)
  return ['blobs', algorithm, hex]
}

async function fileIn(
  root: CID,
  path: readonly string[],
  blocks: BlockSource,
  request: BlockRequest,
): Promise<UnixfsFile | undefined> {
  const entry = await orUndefined(resolveUnixfsPath(root, path, blocks, request))
  return entry?.kind === 'file' ? UnixfsFile.open(entry.cid, blocks, request) : undefined
}
