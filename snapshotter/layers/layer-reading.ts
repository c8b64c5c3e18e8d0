import { createHash, type Hash } from 'node:crypto'
import { LayerError } from '../errors.ts'
import { parseDigest } from '../oci/digest.ts'
import type { LayerToc } from '../toc/layer-toc.ts'
import { TarStreamWalk } from '../toc/walk-tar.ts'
import type { ImageLayer } from './catalog.ts'

/** A layer that expands further than this, and beyond `EXPANSION_FREE_BYTES`, is a bomb. Debian's layers reach 4, logs 30. */
const EXPANSION_MAX = 100
/** 1 GiB: one sparse or zero-filled file of that size in a small layer is no attack. */
const EXPANSION_FREE_BYTES = 1024 ** 3

/** Bytes that the tar of a blob of `blobSize` bytes may have; beyond, it is a decompression bomb. */
export function layerBytesBound(blobSize: number): number {
  return Math.max(EXPANSION_FREE_BYTES, blobSize * EXPANSION_MAX)
}

type ReadLayer = Pick<ImageLayer, 'blobDigest' | 'diffId'>

/** Checks a layer that is read from front to back against its manifest, and finds its table of contents. */
export class LayerReading {
  readonly #layer: ReadLayer
  readonly #blobHash: Hash
  readonly #layerHash: Hash
  readonly #walk = new TarStreamWalk()

  constructor(layer: ReadLayer) {
    this.#layer = layer
    this.#blobHash = createHash(parseDigest(layer.blobDigest).algorithm)
    this.#layerHash = createHash(parseDigest(layer.diffId).algorithm)
  }

  /** Passes on the blob's bytes, which must be all of them and in order. */
  async *ofBlob(blob: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void> {
    for await (const bytes of blob) {
      this.#blobHash.update(bytes)
      yield bytes
    }
  }

  /** Takes the tar's next bytes. Throws LayerError as `TarStreamWalk`. */
  ofLayer(bytes: Uint8Array): void {
    this.#layerHash.update(bytes)
    this.#walk.push(bytes)
  }

  /** The table of contents. Throws LayerError DATA_LOSS if the bytes are not those of the digests. */
  finish(): LayerToc {
    const toc = this.#walk.end()
    this.#check('blob', this.#layer.blobDigest, this.#blobHash)
    this.#check('tar', this.#layer.diffId, this.#layerHash)
    return toc
  }

  #check(what: string, promised: string, hash: Hash): void {
    const actual = `${parseDigest(promised).algorithm}:${hash.digest('hex')}`
    if (actual === promised) return
    throw new LayerError(
      'DATA_LOSS',
      `layer ${this.#layer.blobDigest}: its ${what} has the digest ${actual}, the image says ${promised}`,
      { digest: this.#layer.blobDigest, actual, promised },
    )
  }
}
