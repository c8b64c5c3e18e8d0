import { createHash } from 'node:crypto'
import type { KeyRing } from '../encryption/key-ring.ts'
import type { KeyUnwrapper } from '../encryption/key-unwrapper.ts'
import type { LayerKey } from '../encryption/layer-cipher.ts'
import { encryptionAnnotations, parseLayerEncryption } from '../encryption/layer-encryption.ts'
import { unwrapLayerKey } from '../encryption/unwrap-layer-key.ts'
import { LayerError } from '../errors.ts'

/** How long all keys and providers may take to open one layer. 10 s: three round trips to a provider abroad, and a retry. */
const OPEN_DEADLINE_MS = 10_000

/** How long a layer's key that was opened need not be opened again. containerd asks for each layer of a pull as often as there are layers. */
const OPENED_KEPT_MS = 60_000

/** A layer's encryption as one image describes it, and what opens it. */
export type OpenedLayer = {
  /** The annotations that say so. */
  readonly annotations: Readonly<Record<string, string>>
  /** Of the whole ciphertext. */
  readonly hmac: Uint8Array
  readonly key: LayerKey
}

/** What is kept beside an encrypted layer: enough to ask for its key again, and to know it from others. No key. */
export type KeptEncryption = {
  readonly blobDigest: string
  readonly annotations: Readonly<Record<string, string>>
  /** `LayerKey.mark` of the key that the layer was built with. */
  readonly keyMark: string
}

type EncryptedLayer = Pick<KeptEncryption, 'blobDigest' | 'annotations'>

/** Opens the keys of encrypted layers. Keys live in memory only; after a restart they are asked for when bytes are missing. */
export class LayerKeys {
  readonly #ring: KeyRing
  readonly #imageLayers: (blobCid: string) => readonly EncryptedLayer[]
  readonly #opened = new Map<string, Promise<OpenedLayer>>()

  /** `imageLayers`: how the images of this node describe the layer with a blob. */
  constructor(ring: KeyRing, imageLayers: (blobCid: string) => readonly EncryptedLayer[]) {
    this.#ring = ring
    this.#imageLayers = imageLayers
  }

  /** Opens a layer by what an image says of it. Rejects as `parseLayerEncryption` and `unwrapLayerKey`. */
  open({ blobDigest, annotations }: EncryptedLayer): Promise<OpenedLayer> {
    const encryption = encryptionAnnotations(annotations)
    const name = nameOf(blobDigest, encryption)
    const known = this.#opened.get(name)
    if (known !== undefined) return known
    const opened = this.#open(blobDigest, encryption, this.#ring.all)
    this.#opened.set(name, opened)
    const forget = (): boolean => this.#opened.delete(name)
    opened.then(() => setTimeout(forget, OPENED_KEPT_MS).unref(), forget)
    return opened
  }

  /**
   * The key of a layer that was built: by what was said of it then, or by what an image says that came later, for other recipients.
   * Never another key than it was built with. Rejects as `open`.
   */
  reopen(blobCid: string, kept: KeptEncryption): Promise<OpenedLayer> {
    return this.#firstOf(blobCid, kept, (layer) => this.open(layer))
  }

  /**
   * Checks that pods of a Kubernetes namespace may see a layer that was built: a key that they may use opens it. Asked anew
   * every time. Rejects as `open`.
   */
  async authorize(blobCid: string, kept: KeptEncryption, namespace: string): Promise<void> {
    const keys = this.#ring.of(namespace)
    await this.#firstOf(blobCid, kept, ({ blobDigest, annotations }) =>
      this.#open(blobDigest, encryptionAnnotations(annotations), keys),
    )
  }

  /**
   * Whether an image whose manifest describes a layer in its own words may have what was built of the same blob: only if a key of this
   * node opens it by these words too. Rejects as `open`, and with LayerError PERMISSION_DENIED if they name another key.
   */
  async check(layer: EncryptedLayer, built: KeptEncryption): Promise<void> {
    const opened = await this.open(layer)
    const hmac = parseLayerEncryption(built.annotations, built.blobDigest).hmac
    const isSame = opened.key.mark === built.keyMark && Buffer.compare(opened.hmac, hmac) === 0
    if (!isSame) throw otherKey(layer.blobDigest)
  }

  async #firstOf(
    blobCid: string,
    kept: KeptEncryption,
    open: (layer: EncryptedLayer) => Promise<OpenedLayer>,
  ): Promise<OpenedLayer> {
    const { blobDigest } = kept
    let failure: unknown
    for (const { annotations } of [kept, ...this.#imageLayers(blobCid)]) {
      try {
        const opened = await open({ blobDigest, annotations })
        if (opened.key.mark === kept.keyMark) return opened
        failure ??= otherKey(blobDigest)
      } catch (error) {
        failure ??= error
      }
    }
    throw failure
  }

  async #open(
    blobDigest: string,
    annotations: Record<string, string>,
    keys: KeyUnwrapper,
  ): Promise<OpenedLayer> {
    const encryption = parseLayerEncryption(annotations, blobDigest)
    const signal = AbortSignal.timeout(OPEN_DEADLINE_MS)
    const { key } = await unwrapLayerKey(encryption, keys, blobDigest, signal)
    return { annotations, hmac: encryption.hmac, key }
  }
}

function otherKey(blobDigest: string): LayerError {
  return new LayerError(
    'PERMISSION_DENIED',
    `layer ${blobDigest} is on this node under another key than the image names: one of both images was tampered with; if it is the one that was here first, run 'ipdr cache rm ${blobDigest}'`,
    { digest: blobDigest },
  )
}

function nameOf(blobDigest: string, annotations: Record<string, string>): string {
  const names = Object.keys(annotations).toSorted((one, other) => (one < other ? -1 : 1))
  const text = JSON.stringify([blobDigest, names.map((name) => [name, annotations[name]])])
  return createHash('sha256').update(text).digest('hex')
}
