import type { CID } from 'multiformats/cid'
import { blobCid, REGISTRY_BLOB_BYTES_MAX } from '../blobs/registry-blob.ts'
import { isEncrypted } from '../encryption/layer-encryption.ts'
import { CodedError, ImageError, RegistryError } from '../errors.ts'
import type { ImageRegistries, RepositoryScope } from '../image-registries.ts'
import type { Log } from '../log.ts'
import { type Digest, isDigest } from '../oci/digest.ts'
import { IMAGE_CONFIG_BYTES_MAX, parseImageConfig } from '../oci/image-config.ts'
import { layerChainIds } from '../oci/layer-chain-id.ts'
import {
  checkRunnable,
  chooseManifest,
  type ImageManifest,
  parseManifest,
} from '../oci/manifest.ts'
import { nodePlatform } from '../oci/platform.ts'
import { IMAGE_HOST } from '../oci/reference.ts'
import {
  parseRegistryReference,
  type RegistryPlace,
  type RegistryReference,
} from '../oci/registry-reference.ts'
import { vouchedTable } from '../toc/table-annotations.ts'
import type { TrustPolicies } from '../trust/trust-policies.ts'
import { unlessAborted } from '../unless-aborted.ts'
import type { Catalog, ImageLayer, ImageRecord } from './catalog.ts'
import type { KnownIndexes } from './known-indexes.ts'
import {
  LAYER_DIGEST_LABEL,
  LAYERS_LABEL,
  MANIFEST_DIGEST_LABEL,
  REFERENCE_LABEL,
} from './pull-labels.ts'

/** A label, in characters: containerd's own limit for a key and its value together. */
const LABEL_CHARS_MAX = 4096

/** How long the answer for an image is not asked for again, in ms. 10 min: the layers of one pull come within it. */
const KEPT_MS = 600_000

/** Answers kept. 1,000: the images of some nodes. */
const KEPT_MAX = 1_000

/** Two documents of a registry, in ms: 20 s, then containerd downloads the image as it would have. */
const LOOK_UP_MS = 20_000

/** What is being pulled, by its labels. */
export type PulledLayer = {
  readonly layerChainId: string
  readonly labels: ReadonlyMap<string, string>
}

type Pull = {
  readonly reference: RegistryReference
  readonly name: string
  readonly manifestDigest: Digest | undefined
  readonly layerDigest: string | undefined
  /** From the layer on, as many as the label had room for. */
  readonly layerDigests: readonly string[]
}

type Kept = {
  readonly image: Promise<ImageRecord | 'declined'>
  readonly untilMs: number
  /** Once it is known. */
  manifestDigest?: string
}

/** Finds out what containerd pulls from registries, and whether its layers can be read before they are here. */
export class RegistryImages {
  readonly #catalog: Catalog
  readonly #registries: ImageRegistries
  readonly #indexes: KnownIndexes
  readonly #trust: TrustPolicies
  readonly #log: Log
  readonly #kept = new Map<string, Kept>()
  /** Images that were found by this process, and of which no layer was handed out yet. */
  readonly #unused = new Set<number>()

  constructor({
    catalog,
    registries,
    indexes,
    trust,
    log,
  }: {
    catalog: Catalog
    registries: ImageRegistries
    indexes: KnownIndexes
    trust: TrustPolicies
    log: Log
  }) {
    this.#catalog = catalog
    this.#registries = registries
    this.#indexes = indexes
    this.#trust = trust
    this.#log = log
  }

  /**
   * The image that is pulled, remembered; undefined if its labels name none in a registry. Declined if not every layer of it can
   * be read lazily, or that cannot be found out: containerd is to download it, and the log says why, once. Rejects with ImageError
   * if a policy does not let it run, or cannot be asked; and when `signal` aborts.
   */
  async find(
    pulled: PulledLayer,
    signal: AbortSignal,
  ): Promise<ImageRecord | 'declined' | undefined> {
    const pull = this.#pullOf(pulled)
    if (pull === undefined || pull === 'declined') return pull
    const { reference, name } = pull
    const namespaces = this.#registries.namespacesPulling(name)
    const scope = { host: reference.host, repository: reference.repository, namespaces }
    const image = await unlessAborted(this.#resolveOnce(pull, scope), signal)
    if (image === 'declined') return image
    const problem = contradiction(image, pull, pulled.layerChainId)
    if (problem === undefined) return image
    this.decline(image, problem)
    return 'declined'
  }

  /**
   * The layers of an image that is about to be pulled, lazy or not; undefined if it names none in a registry, or if that does not
   * tell. Rejects only when `signal` aborts.
   */
  async layersToCome(
    name: string,
    signal: AbortSignal,
  ): Promise<readonly ImageLayer[] | undefined> {
    const pull = this.#pullOf({ layerChainId: '', labels: new Map([[REFERENCE_LABEL, name]]) })
    if (pull === undefined || pull === 'declined') return undefined
    const { host, repository } = pull.reference
    const scope = { host, repository, namespaces: this.#registries.namespacesPulling(name) }
    const limited = AbortSignal.any([signal, AbortSignal.timeout(LOOK_UP_MS)])
    try {
      const { manifest } = await this.#manifest(pull, scope, limited)
      return await this.#layers(manifest, pull, scope, limited)
    } catch (error) {
      signal.throwIfAborted()
      const why = error instanceof Error ? error.message : String(error)
      this.#log.debug({ image: name }, `the layers of image ${name} cannot be told: ${why}`)
      return undefined
    }
  }

  /** To be told that an image is used, so that its layers are looked for where it is. */
  used(image: ImageRecord): void {
    this.#unused.delete(image.id)
  }

  /** To be told that an image cannot be used after all: nothing of it is lazy. */
  decline(image: ImageRecord, because: string): void {
    // One that is in use stays: its layers are read from where it is.
    if (this.#unused.delete(image.id)) this.#catalog.forgetImage(image.id)
    for (const [key, kept] of this.#kept) {
      if (kept.manifestDigest !== image.manifestDigest) continue
      this.#kept.set(key, { ...kept, image: Promise.resolve('declined') })
    }
    const sentence = `image ${image.reference ?? image.rootCid} is left to containerd, which downloads it whole: ${because}`
    this.#log.warn({ image: image.reference, manifest: image.manifestDigest }, sentence)
  }

  #pullOf({ labels }: PulledLayer): Pull | 'declined' | undefined {
    const name = labels.get(REFERENCE_LABEL)
    if (name === undefined) return undefined
    try {
      for (const label of [REFERENCE_LABEL, LAYERS_LABEL, LAYER_DIGEST_LABEL]) {
        if ((labels.get(label)?.length ?? 0) <= LABEL_CHARS_MAX) continue
        const message = `label ${label} has more than ${LABEL_CHARS_MAX} characters`
        throw new ImageError('INVALID_ARGUMENT', message)
      }
      const reference = parseRegistryReference(name)
      if (reference.host === IMAGE_HOST) return undefined
      const manifestDigest = labels.get(MANIFEST_DIGEST_LABEL)
      return {
        reference,
        name,
        manifestDigest:
          manifestDigest !== undefined && isDigest(manifestDigest) ? manifestDigest : undefined,
        layerDigest: labels.get(LAYER_DIGEST_LABEL),
        layerDigests:
          labels
            .get(LAYERS_LABEL)
            ?.split(',')
            .filter((digest) => digest !== '') ?? [],
      }
    } catch (error) {
      if (!(error instanceof CodedError)) throw error
      const sentence = `a snapshot's labels name no image that could be read lazily: ${error.message}`
      this.#log.warn({ reason: error.message }, sentence)
      return 'declined'
    }
  }

  async #resolveOnce(pull: Pull, scope: RepositoryScope): Promise<ImageRecord | 'declined'> {
    const { reference, manifestDigest } = pull
    const key = `${JSON.stringify(scope)} ${manifestDigest ?? reference.selector}`
    const known = this.#kept.get(key)
    if (known !== undefined && performance.now() < known.untilMs) {
      const image = await known.image
      // Garbage collection may have forgotten it since.
      if (image === 'declined' || this.#catalog.hasImage(image.rootCid, image.manifestDigest)) {
        return image
      }
    }
    const image = this.#resolve(pull, scope).catch((error: unknown) => {
      const refusal = this.#refusal(pull, error)
      if (refusal !== undefined) {
        // A signature may come, or the registry come back: asked again with the next pull.
        this.#kept.delete(key)
        throw refusal
      }
      const why = error instanceof Error ? error.message : String(error)
      const sentence = `image ${pull.name} is left to containerd, which downloads it whole: ${why}`
      this.#log.info({ image: pull.name }, sentence)
      return 'declined' as const
    })
    const kept: Kept = { image, untilMs: performance.now() + KEPT_MS }
    this.#kept.delete(key)
    this.#kept.set(key, kept)
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= KEPT_MAX) break
      this.#kept.delete(oldest)
    }
    const found = await image
    if (found !== 'declined') kept.manifestDigest = found.manifestDigest
    return found
  }

  /** What ends the pull; undefined if it is left to containerd. */
  #refusal({ reference, name }: Pull, error: unknown): unknown {
    // Let in by the policies, and no reason to refuse it.
    if (error instanceof NotLazy) return undefined
    if (!(error instanceof CodedError)) return error
    const policy = this.#trust.decidingOn(trustName(reference))
    if (policy === undefined) return undefined
    if (error instanceof ImageError && error.code === 'PERMISSION_DENIED') return error
    return new ImageError(
      'FAILED_PRECONDITION',
      `image ${name} is refused, since policy '${policy}' could not be asked: ${error.message}`,
      { policy, image: name },
      error,
    )
  }

  /** Checks an image that was remembered under other policies than those of now. Rejects as `TrustPolicies.check`. */
  async recheck(image: ImageRecord, signal: AbortSignal): Promise<void> {
    const { fingerprint } = this.#trust
    if (image.trustedBy === fingerprint) return
    const reference = parseRegistryReference(image.reference ?? '')
    const [layer] = image.layers
    const scope = this.#catalog
      .scopesOf(layer?.blobCid ?? '')
      .find((each) => each.host === reference.host && each.repository === reference.repository)
    await this.#check({ namespaces: [], ...reference, ...scope }, image.manifestDigest, signal)
    this.#catalog.markTrusted(image.id, fingerprint)
  }

  async #check(scope: RepositoryScope, manifestDigest: string, signal: AbortSignal): Promise<void> {
    const name = trustName(scope)
    // Without a policy for it nothing has to be asked.
    if (this.#trust.decidingOn(name) === undefined) return
    const registries = this.#registries
    const image = {
      name,
      root: undefined,
      manifestDigest: manifestDigest as Digest,
      place: {
        name,
        manifest: async (reference: string) => {
          const found = await asImageError(registries.manifest(scope, reference, signal))
          return { ...found, mediaType: parseManifest(found.bytes, name).mediaType }
        },
        tags: () => registries.tags(scope, signal),
        blobBytes: (digest: Digest, bytesMax: number) =>
          asImageError(registries.smallBlob(scope, digest, bytesMax, signal)),
      },
    }
    await this.#trust.check(image, { priority: 'foreground', signal })
  }

  async #resolve(pull: Pull, scope: RepositoryScope): Promise<ImageRecord> {
    const { reference } = pull
    const signal = AbortSignal.timeout(LOOK_UP_MS)
    try {
      const { manifest, digest } = await this.#manifest(pull, scope, signal)
      await this.#check(scope, digest, signal)
      const indexes = await this.#indexes.all({ priority: 'foreground', signal })
      checkLazy(manifest, indexes)
      const layers = await this.#layers(manifest, pull, scope, signal)
      const indexed = layers.map((layer) => withIndex(layer, indexes))
      return this.#remember(pull, scope, { digest, layers: indexed })
    } catch (error) {
      if (!signal.aborted) throw error
      const message = `registry ${reference.host} did not say within ${LOOK_UP_MS} ms what it is`
      throw new ImageError('DEADLINE_EXCEEDED', message, { host: reference.host })
    }
  }

  async #layers(
    manifest: ImageManifest,
    { name }: Pull,
    scope: RepositoryScope,
    signal: AbortSignal,
  ): Promise<ImageLayer[]> {
    const { digest } = manifest.config
    const config = await this.#registries.smallBlob(scope, digest, IMAGE_CONFIG_BYTES_MAX, signal)
    const { diffIds } = parseImageConfig(config, `config ${digest} of ${name}`)
    return layersOf(manifest, diffIds, name)
  }

  async #manifest(
    { reference, name, manifestDigest }: Pull,
    scope: RepositoryScope,
    signal: AbortSignal,
  ): Promise<{ manifest: ImageManifest; digest: Digest }> {
    let selector: string = manifestDigest ?? reference.selector
    // An index, and in it the manifest of this node's platform.
    for (let depth = 0; depth < 2; depth++) {
      const found = await this.#registries.manifest(scope, selector, signal)
      const document = parseManifest(found.bytes, `manifest ${selector} of ${name}`)
      if (document.kind === 'manifest') {
        checkRunnable(document, `manifest ${selector} of ${name}`)
        return { manifest: document, digest: found.digest }
      }
      selector = chooseManifest(document, nodePlatform(), name).digest
    }
    throw new ImageError('INVALID_ARGUMENT', `${name} is an index of indexes`)
  }

  #remember(
    { reference, name }: Pull,
    { namespaces }: RepositoryScope,
    { digest, layers }: { readonly digest: Digest; readonly layers: readonly ImageLayer[] },
  ): ImageRecord {
    const { host, repository } = reference
    const rootCid = blobCid(digest).toString()
    const isNew = !this.#catalog.hasImage(rootCid, digest)
    const image = this.#catalog.rememberImage({
      rootCid,
      manifestDigest: digest,
      seenAtMs: Date.now(),
      trustedBy: this.#trust.fingerprint,
      layers,
    })
    if (isNew) this.#unused.add(image.id)
    // '' beside namespaces would be of no use: what is meant for the whole node is shown anyway.
    for (const namespace of namespaces.length === 0 ? [''] : namespaces) {
      this.#catalog.addOrigin(image.id, { host, repository, namespace, reference: name })
    }
    return { ...image, reference: name }
  }
}

/** An image that is good, but not to be read lazily. */
class NotLazy extends ImageError {}

/** As people name it, and policies do. */
function trustName({ host, repository }: RegistryPlace): string {
  return `${host}/${repository}`
}

/** Where a signature is not there, none is: the only answer of a registry that policies are told so. */
async function asImageError<T>(work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    if (!(error instanceof RegistryError) || error.code !== 'NOT_FOUND') throw error
    throw new ImageError('NOT_FOUND', error.message, error.facts, error)
  }
}

/** Throws NotLazy unless every layer has a table of contents that vouches for all of it, or an index that the operator vouches for. */
function checkLazy({ layers }: ImageManifest, indexes: ReadonlyMap<string, unknown>): void {
  for (const { digest, size, mediaType, annotations = {}, urls = [] } of layers) {
    const why = isEncrypted(mediaType)
      ? 'is encrypted, which is not read lazily from registries'
      : urls.length > 0
        ? 'is kept elsewhere'
        : size > REGISTRY_BLOB_BYTES_MAX
          ? `would have ${size} bytes, ${REGISTRY_BLOB_BYTES_MAX} are read lazily`
          : vouchedTable(annotations) === undefined && !indexes.has(digest)
            ? 'has no table of contents that its manifest vouches for (images of ipdr push, eStargz and zstd:chunked with a tar-split have) and no index under registries.indexes (ipdr index docker://… makes one)'
            : undefined
    if (why !== undefined) {
      throw new NotLazy('FAILED_PRECONDITION', `its layer ${digest} ${why}`, { layer: digest })
    }
  }
}

/** The layer with the index that is known of it, where its manifest vouches for no table: that one is better. */
function withIndex(layer: ImageLayer, indexes: ReadonlyMap<string, CID>): ImageLayer {
  if (vouchedTable(layer.annotations) !== undefined) return layer
  return { ...layer, indexCid: indexes.get(layer.blobDigest)?.toV1().toString() }
}

function layersOf(
  { layers }: ImageManifest,
  diffIds: readonly Digest[],
  name: string,
): ImageLayer[] {
  if (diffIds.length !== layers.length) {
    const message = `${name} has ${layers.length} layers, its config has ${diffIds.length} diff IDs`
    throw new ImageError('INVALID_ARGUMENT', message)
  }
  const chainIds = layerChainIds(diffIds)
  return layers.map(({ digest, size, mediaType, annotations }, position) => ({
    layerChainId: String(chainIds[position]),
    diffId: diffIds[position] ?? digest,
    blobDigest: digest,
    blobCid: blobCid(digest).toString(),
    blobSize: size,
    mediaType,
    annotations: annotations ?? {},
    indexCid: undefined,
    inRegistry: true,
  }))
}

/** Why the image cannot be the one that is pulled: what the labels say of it is not so. */
function contradiction(
  { layers }: ImageRecord,
  { layerDigest, layerDigests }: Pull,
  layerChainId: string,
): string | undefined {
  const position = layers.findIndex((layer) => layer.layerChainId === layerChainId)
  if (position === -1) return 'the registry has another image by that name by now'
  const left = layers.slice(position).map(({ blobDigest }) => blobDigest)
  const isSame = layerDigests.every((digest, index) => digest === left[index])
  if ((layerDigest === undefined || layerDigest === left[0]) && isSame) return undefined
  return 'its labels name other layers than the registry has'
}
