import { CID } from 'multiformats/cid'
import type { BlockRequest, BlockSource } from '../block-source.ts'
import { openIpfsImage } from '../dag/open-ipfs-image.ts'
import { readImageConfig } from '../dag/read-image-config.ts'
import { listSideIndexes } from '../dag/side-indexes.ts'
import { CodedError, ImageError } from '../errors.ts'
import type { Log } from '../log.ts'
import type { Digest } from '../oci/digest.ts'
import { layerChainIds } from '../oci/layer-chain-id.ts'
import { checkRunnable, chooseManifest, parseManifest } from '../oci/manifest.ts'
import { nodePlatform } from '../oci/platform.ts'
import { imageToTrust } from '../trust/image-to-trust.ts'
import type { TrustPolicies } from '../trust/trust-policies.ts'
import type { Catalog, ImageLayer, ImageRecord } from './catalog.ts'

type Parts = {
  readonly catalog: Catalog
  readonly blocks: BlockSource
  readonly trust: TrustPolicies
  /** Told of an image when its manifest is known, before anything else is asked for. */
  readonly onManifest: (root: CID, manifest: Digest) => void
  readonly log: Log
}

/** Finds the layers of images and remembers them under their chain IDs: all that containerd will tell us later. */
export class Images {
  readonly #catalog: Catalog
  readonly #blocks: BlockSource
  readonly #trust: TrustPolicies
  readonly #onManifest: Parts['onManifest']
  readonly #log: Log

  constructor({ catalog, blocks, trust, onManifest, log }: Parts) {
    this.#catalog = catalog
    this.#blocks = blocks
    this.#trust = trust
    this.#onManifest = onManifest
    this.#log = log
  }

  /**
   * Remembers the image of a manifest that was found under `root`; an index is remembered by its own manifests, when they
   * are asked for. Rejects with ImageError if it cannot be run, as `TrustPolicies.check` if it must not, and with BlockError.
   */
  async remember(
    root: CID,
    found: { readonly bytes: Uint8Array; readonly digest: Digest },
    request: BlockRequest,
  ): Promise<ImageRecord | undefined> {
    const rootCid = root.toV1().toString()
    const name = `manifest ${found.digest} of ${rootCid}`
    const manifest = parseManifest(found.bytes, name)
    if (manifest.kind === 'index') return undefined
    checkRunnable(manifest, name)
    this.#onManifest(root, found.digest)
    const image = await openIpfsImage(root, this.#blocks, request)
    await this.#trust.check(imageToTrust(image, found.digest), request)
    const blobDigests = manifest.layers.map(({ digest }) => digest)
    // At once: each of them is some round trips, and a pull waits for all.
    const [{ diffIds }, blobCids, indexCids] = await Promise.all([
      readImageConfig(image, manifest, request),
      image.blobCids(blobDigests, request),
      this.#sideIndexesOf(root, request),
    ])
    if (diffIds.length !== manifest.layers.length) {
      throw new ImageError(
        'INVALID_ARGUMENT',
        `${name} has ${manifest.layers.length} layers, its config has ${diffIds.length} diff IDs`,
        { root: rootCid, digest: found.digest },
      )
    }
    const chainIds = layerChainIds(diffIds)
    const layers = manifest.layers.map((descriptor, position): ImageLayer => {
      const blobCid = blobCids.get(descriptor.digest)
      if (blobCid === undefined) {
        throw new ImageError(
          'NOT_FOUND',
          `image ${rootCid} has no blob for its layer ${descriptor.digest}: it was not published whole`,
          { root: rootCid, digest: descriptor.digest },
        )
      }
      return {
        layerChainId: String(chainIds[position]),
        diffId: diffIds[position] ?? descriptor.digest,
        blobDigest: descriptor.digest,
        blobCid: blobCid.toV1().toString(),
        blobSize: descriptor.size,
        mediaType: descriptor.mediaType,
        annotations: descriptor.annotations ?? {},
        indexCid: indexCids.get(descriptor.digest)?.toV1().toString(),
      }
    })
    return this.#catalog.rememberImage({
      rootCid,
      manifestDigest: found.digest,
      seenAtMs: Date.now(),
      trustedBy: this.#trust.fingerprint,
      layers,
    })
  }

  /** The image of a tag or digest under `root` for this node's platform, remembered. Rejects as `remember`. */
  async resolve(root: CID, selector: string, request: BlockRequest): Promise<ImageRecord> {
    const image = await openIpfsImage(root, this.#blocks, request)
    const found = await image.manifest(selector, request)
    const remembered = await this.remember(root, found, request)
    if (remembered !== undefined) return remembered
    const name = `index ${found.digest} of ${root.toString()}`
    const index = parseManifest(found.bytes, name)
    if (index.kind !== 'index') throw new ImageError('INTERNAL', `${name} is not an index`)
    const { digest } = chooseManifest(index, nodePlatform(), name)
    return this.resolve(root, digest, request)
  }

  /**
   * Checks an image that was remembered under other policies than those of now, before more of it is made known. Rejects as
   * `TrustPolicies.check`.
   */
  async recheck(image: ImageRecord, request: BlockRequest): Promise<void> {
    const { fingerprint } = this.#trust
    if (image.trustedBy === fingerprint) return
    const found = await openIpfsImage(CID.parse(image.rootCid), this.#blocks, request)
    await this.#trust.check(imageToTrust(found, image.manifestDigest as Digest), request)
    this.#catalog.markTrusted(image.id, fingerprint)
  }

  /** An image is not worse for a directory of indexes that cannot be read: its layers are then read without. */
  async #sideIndexesOf(root: CID, request: BlockRequest): Promise<ReadonlyMap<string, CID>> {
    try {
      return await listSideIndexes(root, this.#blocks, request)
    } catch (error) {
      if (request.signal.aborted || !(error instanceof CodedError)) throw error
      const image = root.toString()
      this.#log.warn(
        { image, reason: error.message },
        `the indexes beside image ${image} cannot be used, so its layers are read without them: ${error.message}`,
      )
      return new Map()
    }
  }
}
