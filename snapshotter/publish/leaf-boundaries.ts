/** A frame of the blob: its compressed and decompressed length, and the SHA-256 (hex) of the content if it is a file's. */
export type LeafFrame = {
  readonly blobBytes: number
  readonly layerBytes: number
  readonly contentDigest?: string
  /** Whether a start of the image reads it, where that is known; headers and padding belong to what is before them. */
  readonly isRead?: boolean
}

/** From this compressed length on a content is a leaf alone, in bytes. 64 KiB: larger than any group around it should grow by. */
export const OWN_LEAF_BYTES_MIN: number = 64 * 1024

/** No leaf of small files ends before it has this many compressed bytes. 32 KiB: a request costs what 32 KiB at 50 MB/s cost. */
export const LEAF_BYTES_MIN: number = 32 * 1024

/** What leaves of small files come to on average, in compressed bytes. 128 KiB: half of Kubo's leaf, some 30 files. */
export const LEAF_BYTES_USUAL: number = 128 * 1024

/** What a leaf of small files grows to at most, in compressed bytes. 512 KiB. */
export const LEAF_BYTES_MAX: number = 512 * 1024

/** What a leaf decodes to at most, in bytes. 2 MiB: two long chunks, 10 ms to decode. */
export const LEAF_LAYER_BYTES_MAX: number = 2 * 1024 * 1024

/**
 * Decides where the UnixFS leaves of a layer end: between frames, and after a file whose digest says so. The decision looks at
 * that file and at the leaf so far only, so that a run of the same files becomes the same leaves in another layer. The chance
 * grows with the length of the file, as if every byte were asked.
 *
 * What a start of the image reads and what it does not read never share a leaf. Padding goes with what is read, since the kernel reads
 * the last block of a file whole: such a leaf ends only where the next content begins.
 */
export class LeafBoundaries {
  #blobBytes = 0
  #layerBytes = 0
  #isRead: boolean | undefined
  /** The leaf is over, but for the padding that follows. */
  #isOver = false

  /** Takes the next frame: does a leaf end before it, and does one end after it? */
  place(frame: LeafFrame): { readonly endsBefore: boolean; readonly endsAfter: boolean } {
    const { blobBytes, layerBytes, contentDigest, isRead } = frame
    const isContent = contentDigest !== undefined
    const alone = isContent && blobBytes >= OWN_LEAF_BYTES_MIN
    const full =
      this.#blobBytes + blobBytes > LEAF_BYTES_MAX ||
      this.#layerBytes + layerBytes > LEAF_LAYER_BYTES_MAX
    const isOther = isContent && this.#isRead !== undefined && isRead !== this.#isRead
    const endsBefore =
      this.#blobBytes > 0 && (alone || full || isOther || (isContent && this.#isOver))
    if (endsBefore) this.#reset()
    this.#blobBytes += blobBytes
    this.#layerBytes += layerBytes
    if (isContent) this.#isRead = isRead
    const isLast = alone || (isContent && this.#drawn(contentDigest, blobBytes))
    const endsAfter = isLast && isRead !== true
    if (endsAfter) this.#reset()
    else this.#isOver ||= isLast
    return { endsBefore, endsAfter }
  }

  #drawn(contentDigest: string, blobBytes: number): boolean {
    if (this.#blobBytes < LEAF_BYTES_MIN) return false
    return isDrawn(contentDigest, blobBytes / (LEAF_BYTES_USUAL - LEAF_BYTES_MIN))
  }

  #reset(): void {
    this.#blobBytes = 0
    this.#layerBytes = 0
    this.#isRead = undefined
    this.#isOver = false
  }
}

/** Whether a content of this SHA-256 (hex) ends a group, if this share of all does: the same one everywhere. */
export function isDrawn(contentDigest: string, chance: number): boolean {
  return Number.parseInt(contentDigest.slice(0, 8), 16) / 2 ** 32 < chance
}
