import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { ImageError } from '../errors.ts'
import { type Digest, digestOf, isDigest, parseDigest, verifyDigest } from '../oci/digest.ts'
import { MANIFEST_BYTES_MAX, parseManifest } from '../oci/manifest.ts'
import { DEFAULT_TAG } from '../oci/reference.ts'
import { SIDE_INDEXES_DIRECTORY } from '../toc/side-index.ts'
import { readSideIndex } from './read-side-index.ts'
import { UnixfsFile } from './unixfs-file.ts'
import { listUnixfsDirectory, resolveUnixfsPath } from './unixfs-path.ts'

/** Most manifests that are read to find one by digest under another name: an index of 60 platforms, and tags. */
const MANIFESTS_SEARCHED_MAX = 128

/** Names quoted in the error for a CID that holds no image: enough to recognise what it is. */
const NAMES_SHOWN_MAX = 8

/** A manifest or index, as its bytes. */
export type FoundManifest = {
  readonly bytes: Uint8Array
  readonly digest: Digest
  readonly mediaType: string
}

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
export class IpdrImage {
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

  /**
   * Finds the two directories of an image under `root`. Rejects with ImageError NOT_FOUND, which says what is there instead, and
   * as `resolveUnixfsPath`.
   */
  static async open(root: CID, blocks: BlockSource, request: BlockRequest): Promise<IpdrImage> {
    const [manifests, blobs] = await Promise.all([
      directoryIn(root, 'manifests', blocks, request),
      directoryIn(root, 'blobs', blocks, request),
    ])
    if (manifests !== undefined && blobs !== undefined) {
      return new IpdrImage(root, manifests, blobs, blocks)
    }
    throw new ImageError(
      'NOT_FOUND',
      `${root.toString()} is not an image: it is ${await describe(root, blocks, request)}; an image is a directory with manifests/<tag> and blobs/<digest> in it, as ipdr push writes`,
      { root: root.toString() },
    )
  }

  /**
   * The manifest under a tag or digest. A digest is checked against the bytes; `latest`, which clients add when no tag is
   * written, also stands for the only tag there is. Rejects with ImageError NOT_FOUND, naming the tags there are, or DATA_LOSS.
   */
  async manifest(reference: string, request: BlockRequest): Promise<FoundManifest> {
    const name = `manifest ${reference} of ${this.root.toString()}`
    if (isDigest(reference)) {
      const bytes = await this.#manifestByDigest(reference, request)
      return { bytes, digest: reference, mediaType: parseManifest(bytes, name).mediaType }
    }
    const bytes = await this.#manifestByTag(reference, request)
    return { bytes, digest: digestOf(bytes), mediaType: parseManifest(bytes, name).mediaType }
  }

  /** The config, layer or other blob of a digest. Its bytes are not checked against the digest here. Rejects with ImageError NOT_FOUND. */
  async blob(digest: string, request: BlockRequest): Promise<UnixfsFile> {
    parseDigest(digest)
    const file = await this.#open(this.#blobs, digest, request)
    if (file !== undefined) return file
    throw new ImageError('NOT_FOUND', `image ${this.root.toString()} has no blob ${digest}`, {
      root: this.root.toString(),
      digest,
    })
  }

  /** Tags of the image, sorted. */
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

  /**
   * Side indexes of the image's layers, by the digest of the layer's blob (toc/side-index.ts); none in an image that nobody
   * indexed. Nothing of them is checked here.
   */
  async sideIndexes(request: BlockRequest): Promise<Map<string, CID>> {
    const directory = await directoryIn(this.root, SIDE_INDEXES_DIRECTORY, this.#blocks, request)
    if (directory === undefined) return new Map()
    const found = await listUnixfsDirectory(directory, this.#blocks, request)
    return new Map(found.map(({ name, cid }) => [name, cid]))
  }

  /** The bytes of a layer's side index; undefined if there is none. Rejects as `readSideIndex`. */
  async readSideIndex(
    { digest, size }: { readonly digest: string; readonly size: number },
    request: BlockRequest,
  ): Promise<Uint8Array | undefined> {
    const cid = (await this.sideIndexes(request)).get(digest)
    return cid && readSideIndex(cid, size, this.#blocks, request)
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
    throw this.#noManifest(digest, await this.tags(request))
  }

  async #manifestByTag(tag: string, request: BlockRequest): Promise<Uint8Array> {
    const file = await this.#open(this.#manifests, tag, request)
    if (file !== undefined) return this.#manifestBytes(file, tag, request)
    const tags = await this.tags(request)
    const [only] = tags
    if (tag !== DEFAULT_TAG || only === undefined || tags.length > 1) {
      throw this.#noManifest(tag, tags)
    }
    return this.#manifestByTag(only, request)
  }

  async #manifestBytes(file: UnixfsFile, name: string, request: BlockRequest): Promise<Uint8Array> {
    if (file.size <= MANIFEST_BYTES_MAX) {
      return file.readRange({ start: 0, end: file.size }, request)
    }
    throw new ImageError(
      'RESOURCE_EXHAUSTED',
      `manifest ${name} of ${this.root.toString()} has ${file.size} bytes, a manifest may have ${MANIFEST_BYTES_MAX}`,
      { root: this.root.toString(), bytes: file.size },
    )
  }

  async #open(
    directory: CID,
    name: string,
    request: BlockRequest,
  ): Promise<UnixfsFile | undefined> {
    const entry = await orUndefined(resolveUnixfsPath(directory, [name], this.#blocks, request))
    return entry && UnixfsFile.open(entry.cid, this.#blocks, request)
  }

  #noManifest(reference: string, tags: readonly string[]): ImageError {
    const shown = tags.slice(0, NAMES_SHOWN_MAX).join(', ')
    return new ImageError(
      'NOT_FOUND',
      `image ${this.root.toString()} has no manifest ${reference}; its tags are: ${shown || 'none'}`,
      { root: this.root.toString(), reference },
    )
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

async function describe(root: CID, blocks: BlockSource, request: BlockRequest): Promise<string> {
  const { kind } = await resolveUnixfsPath(root, [], blocks, request)
  if (kind === 'symlink') return 'a symlink'
  if (kind === 'file') {
    const { size } = await UnixfsFile.open(root, blocks, request)
    return `a file of ${size} bytes`
  }
  const names = (await listUnixfsDirectory(root, blocks, request)).map(({ name }) => name)
  if (names.length === 0) return 'an empty directory'
  const more = names.length > NAMES_SHOWN_MAX ? ` and ${names.length - NAMES_SHOWN_MAX} more` : ''
  return `a directory with ${names.slice(0, NAMES_SHOWN_MAX).join(', ')}${more}`
}

/** ImageError NOT_FOUND as undefined. A block that nobody has is a BlockError, and stays a failure. */
async function orUndefined<T>(found: Promise<T>): Promise<T | undefined> {
  try {
    return await found
  } catch (error) {
    if (error instanceof ImageError && error.code === 'NOT_FOUND') return undefined
    throw error
  }
}
