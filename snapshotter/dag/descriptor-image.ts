import type { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { BlockError, ImageError } from '../errors.ts'
import { type Descriptor, descriptorSchema } from '../oci/descriptor.ts'
import { isDigest, parseDigest, verifyDigest } from '../oci/digest.ts'
import { parseManifest } from '../oci/manifest.ts'
import { parseCid } from '../oci/parse-cid.ts'
import { parseJson } from '../oci/parse-json.ts'
import { DEFAULT_TAG } from '../oci/reference.ts'
import {
  type FoundManifest,
  type IpfsImage,
  noBlob,
  noManifest,
  readManifestFile,
} from './ipfs-image.ts'
import { UnixfsFile } from './unixfs-file.ts'

/** Largest descriptor that is read, in bytes: 64 KiB, where nerdctl's have some 300 and annotations seldom double that. */
export const DESCRIPTOR_BYTES_MAX: number = 64 * 1024

/** Most manifests that are read to find a blob: an index of 60 platforms, each with an attestation. */
const MANIFESTS_SEARCHED_MAX = 128

/**
 * An image as nerdctl and IPCR publish it: the CID is a file with the OCI descriptor of a manifest or index, and every descriptor
 * from there on has the CID of its content, a UnixFS file, in its `urls`: `ipfs://<cid>` (containerd/stargz-snapshotter, ipfs/).
 */
export class DescriptorImage implements IpfsImage {
  readonly root: CID
  readonly #top: Descriptor
  readonly #blocks: BlockSource
  /** Every descriptor met so far, by digest. Grows by manifests that were read, each under its limits. */
  readonly #known = new Map<string, Descriptor>()
  readonly #read = new Set<string>()

  private constructor(root: CID, top: Descriptor, blocks: BlockSource) {
    this.root = root
    this.#top = top
    this.#blocks = blocks
    this.#learn(top)
  }

  /**
   * The image whose descriptor is the file `root`; undefined if the file is no JSON object with a digest. Rejects with ImageError
   * INVALID_ARGUMENT if it is one but malformed, or has no `ipfs://` address, and as UnixfsFile.open.
   */
  static async open(
    root: CID,
    blocks: BlockSource,
    request: BlockRequest,
  ): Promise<DescriptorImage | undefined> {
    const file = await UnixfsFile.open(root, blocks, request)
    if (file.size > DESCRIPTOR_BYTES_MAX) return undefined
    const bytes = await file.readRange({ start: 0, end: file.size }, request)
    if (!looksLikeDescriptor(bytes)) return undefined
    const top = parseJson(bytes, descriptorSchema, `descriptor ${root.toString()}`)
    addressOf(top)
    return new DescriptorImage(root, top, blocks)
  }

  async manifest(reference: string, request: BlockRequest): Promise<FoundManifest> {
    if (!isDigest(reference)) {
      if (reference !== DEFAULT_TAG) throw noManifest(this.root, reference, [DEFAULT_TAG])
      return this.#manifestOf(this.#top, request)
    }
    const descriptor = await this.#find(reference, request)
    if (descriptor === undefined) throw noManifest(this.root, reference, [DEFAULT_TAG])
    return this.#manifestOf(descriptor, request)
  }

  async blob(digest: string, request: BlockRequest): Promise<UnixfsFile> {
    parseDigest(digest)
    const descriptor = await this.#find(digest, request)
    if (descriptor === undefined) throw noBlob(this.root, digest)
    return this.#open(descriptor, request)
  }

  async blobCids(
    digests: readonly string[],
    request: BlockRequest,
  ): Promise<ReadonlyMap<string, CID>> {
    const found = new Map<string, CID>()
    for (const digest of digests) {
      const descriptor = await this.#find(digest, request)
      if (descriptor !== undefined) found.set(digest, addressOf(descriptor))
    }
    return found
  }

  async tags(): Promise<string[]> {
    return [DEFAULT_TAG]
  }

  /** Reads manifests from the top until `digest` is met. One that cannot be had is only a failure if nothing else leads there. */
  async #find(digest: string, request: BlockRequest): Promise<Descriptor | undefined> {
    const queue = [this.#top]
    const queued = new Set<string>([this.#top.digest])
    let obstacle: unknown
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      const known = this.#known.get(digest)
      if (known !== undefined) return known
      try {
        const { bytes } = await this.#manifestOf(next, request)
        const document = parseManifest(bytes, `manifest ${next.digest}`)
        for (const child of document.kind === 'index' ? document.manifests : []) {
          if (queued.size >= MANIFESTS_SEARCHED_MAX || queued.has(child.digest)) continue
          queued.add(child.digest)
          queue.push(child)
        }
      } catch (error) {
        request.signal.throwIfAborted()
        if (!(error instanceof ImageError || error instanceof BlockError)) throw error
        obstacle ??= error
      }
    }
    const known = this.#known.get(digest)
    if (known === undefined && obstacle !== undefined) throw obstacle
    return known
  }

  async #manifestOf(descriptor: Descriptor, request: BlockRequest): Promise<FoundManifest> {
    const { digest } = descriptor
    const name = `manifest ${digest} of ${this.root.toString()}`
    const bytes = await readManifestFile(await this.#open(descriptor, request), name, request)
    verifyDigest(bytes, digest, name)
    const document = parseManifest(bytes, name)
    if (!this.#read.has(digest)) {
      const isIndex = document.kind === 'index'
      const children = isIndex ? document.manifests : [document.config, ...document.layers]
      for (const child of children) this.#learn(child)
      this.#read.add(digest)
    }
    return { bytes, digest, mediaType: document.mediaType }
  }

  /** A descriptor with an address is not replaced by one that has none. */
  #learn(descriptor: Descriptor): void {
    const known = this.#known.get(descriptor.digest)
    if (known === undefined || cidIn(known) === undefined) {
      this.#known.set(descriptor.digest, descriptor)
    }
  }

  async #open(descriptor: Descriptor, request: BlockRequest): Promise<UnixfsFile> {
    const file = await UnixfsFile.open(addressOf(descriptor), this.#blocks, request)
    if (file.size === descriptor.size) return file
    throw new ImageError(
      'DATA_LOSS',
      `${descriptor.digest} of ${this.root.toString()} has ${file.size} bytes, its descriptor says ${descriptor.size}`,
      { digest: descriptor.digest, cid: file.cid.toString() },
    )
  }
}

function looksLikeDescriptor(bytes: Uint8Array): boolean {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(bytes))
    return typeof value === 'object' && value !== null && 'digest' in value
  } catch {
    return false
  }
}

/** Throws ImageError INVALID_ARGUMENT if the descriptor does not say where on IPFS its content is. */
function addressOf(descriptor: Descriptor): CID {
  const cid = cidIn(descriptor)
  if (cid !== undefined) return cid
  throw new ImageError(
    'INVALID_ARGUMENT',
    `the descriptor of ${descriptor.digest} has no ipfs://<cid> in its urls, so it is not known where the content is; publish the image with nerdctl push ipfs:// or ipdr push`,
    { digest: descriptor.digest },
  )
}

function cidIn({ urls = [] }: Descriptor): CID | undefined {
  for (const url of urls) {
    if (!url.startsWith('ipfs://')) continue
    const cid = parseCid(url.slice('ipfs://'.length))
    if (cid !== undefined) return cid
  }
  return undefined
}
