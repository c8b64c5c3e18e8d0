import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { type Digest, digestOf, isDigest, parseDigest, verifyDigest } from '../oci/digest.ts'
import { MANIFEST_BYTES_MAX, parseManifest } from '../oci/manifest.ts'
import { DEFAULT_TAG, isTagOfArtifact } from '../oci/reference.ts'
import {
  type FoundManifest,
  type IpfsImage,
  noBlob,
  noManifest,
  orUndefined,
  readManifestFile,
} from './ipfs-image.ts'
import { UnixfsFile } from './unixfs-file.ts'
import { listUnixfsDirectory, resolveUnixfsPath } from './unixfs-path.ts'

/** Most manifests that are read to find one by digest under another name: an index of 60 platforms, and tags. */
const MANIFESTS_SEARCHED_MAX = 128

/** A name under `manifests/` or `blobs/`, for listings. */
export type ImageEntry = {
  readonly folder: 'manifests' | 'blobs'
  readonly name: string
  readonly cid: CID
}

/**
 * An image as IPDR lays it out under one UnixFS directory: `manifests/<tag>`, `manifests/<digest>` and `blobs/<digest>`, where
 * a digest is spelled with its algorithm, `sha256:<hex>` (ipdr/ipdr, registry/registry.go).
 */
export class IpdrImage implements IpfsImage {
  readonly root: CID
  readonly #manifests: CID
  readonly #blobs: CID
  readonly #blocks: BlockSource

  private constructor(root: CID, manifests: CID, blobs: CID, blocks: BlockSource) {
    this.root = root
    this.#manifests = manifests
    this.#blobs = blobs
    this.#blocks = blocks
  }

  /** The image under `root`; undefined if it does not have the two directories. Rejects as `resolveUnixfsPath`. */
  static async open(
    root: CID,
    blocks: BlockSource,
    request: BlockRequest,
  ): Promise<IpdrImage | undefined> {
    const [manifests, blobs] = await Promise.all([
      directoryIn(root, 'manifests', blocks, request),
      directoryIn(root, 'blobs', blocks, request),
    ])
    if (manifests === undefined || blobs === undefined) return undefined
    return new IpdrImage(root, manifests, blobs, blocks)
  }

  async manifest(reference: string, request: BlockRequest): Promise<FoundManifest> {
    const name = `manifest ${reference} of ${this.root.toString()}`
    if (isDigest(reference)) {
      const bytes = await this.#manifestByDigest(reference, request)
      return { bytes, digest: reference, mediaType: parseManifest(bytes, name).mediaType }
    }
    const bytes = await this.#manifestByTag(reference, request)
    return { bytes, digest: digestOf(bytes), mediaType: parseManifest(bytes, name).mediaType }
  }

  async blob(digest: string, request: BlockRequest): Promise<UnixfsFile> {
    parseDigest(digest)
    const file = await this.#open(this.#blobs, digest, request)
    if (file !== undefined) return file
    throw noBlob(this.root, digest)
  }

  async blobCids(
    digests: readonly string[],
    request: BlockRequest,
  ): Promise<ReadonlyMap<string, CID>> {
    const wanted = new Set(digests)
    const listed = await listUnixfsDirectory(this.#blobs, this.#blocks, request)
    return new Map(
      listed.filter(({ name }) => wanted.has(name)).map(({ name, cid }) => [name, cid]),
    )
  }

  async tags(request: BlockRequest): Promise<string[]> {
    const names = await listUnixfsDirectory(this.#manifests, this.#blocks, request)
    return names
      .map(({ name }) => name)
      .filter((name) => !isDigest(name))
      .toSorted()
  }

  /** Everything the image has a name for. */
  async entries(request: BlockRequest): Promise<ImageEntry[]> {
    const list = async (folder: ImageEntry['folder'], directory: CID): Promise<ImageEntry[]> => {
      const found = await listUnixfsDirectory(directory, this.#blocks, request)
      return found.map(({ name, cid }) => ({ folder, name, cid }))
    }
    return [...(await list('manifests', this.#manifests)), ...(await list('blobs', this.#blobs))]
  }

  async #manifestByDigest(digest: Digest, request: BlockRequest): Promise<Uint8Array> {
    // Children of an index may lie with the blobs, as in an OCI layout.
    for (const directory of [this.#manifests, this.#blobs]) {
      const file = await this.#open(directory, digest, request)
      if (file === undefined) continue
      const bytes = await this.#manifestBytes(file, digest, request)
      verifyDigest(bytes, digest, `manifest ${digest} of ${this.root.toString()}`)
      return bytes
    }
    // The first writers of this layout filed manifests under their tags only.
    for (const tag of (await this.tags(request)).slice(0, MANIFESTS_SEARCHED_MAX)) {
      const file = await this.#open(this.#manifests, tag, request)
      if (file === undefined || file.size > MANIFEST_BYTES_MAX) continue
      const bytes = await this.#manifestBytes(file, tag, request)
      if (digestOf(bytes, parseDigest(digest).algorithm) === digest) return bytes
    }
    throw noManifest(this.root, digest, await this.tags(request))
  }

  async #manifestByTag(tag: string, request: BlockRequest): Promise<Uint8Array> {
    const file = await this.#open(this.#manifests, tag, request)
    if (file !== undefined) return this.#manifestBytes(file, tag, request)
    const tags = (await this.tags(request)).filter((each) => !isTagOfArtifact(each))
    const [only] = tags
    if (tag !== DEFAULT_TAG || only === undefined || tags.length > 1) {
      throw noManifest(this.root, tag, tags)
    }
    return this.#manifestByTag(only, request)
  }

  #manifestBytes(file: UnixfsFile, name: string, request: BlockRequest): Promise<Uint8Array> {
    return readManifestFile(file, `manifest ${name} of ${this.root.toString()}`, request)
  }

  async #open(
    directory: CID,
    name: string,
    request: BlockRequest,
  ): Promise<UnixfsFile | undefined> {
    const entry = await orUndefined(resolveUnixfsPath(directory, [name], this.#blocks, request))
    return entry && UnixfsFile.open(entry.cid, this.#blocks, request)
  }
}

async function directoryIn(
  root: CID,
  name: string,
  blocks: BlockSource,
  request: BlockRequest,
): Promise<CID | undefined> {
  const entry = await orUndefined(resolveUnixfsPath(root, [name], blocks, request))
  return entry?.kind === 'directory' ? entry.cid : undefined
}
