import type { LayerPiece } from './layer-pieces.ts'
import { isDrawn } from './leaf-boundaries.ts'

/** No group ends before it has this many bytes of the tar. 1 MiB: what is lost at each end stays below 3 %. */
export const GROUP_BYTES_MIN: number = 1024 * 1024

/** What groups come to on average, in bytes of the tar. 4 MiB, as SOCI's spans: 0.6 MB of Debian's files, 10 ms to decode. */
export const GROUP_BYTES_USUAL: number = 4 * 1024 * 1024

/** What a group grows to at most, in bytes of the tar. 8 MiB: what nodes take for one unit (UNIT_LAYER_BYTES_MAX). */
export const GROUP_BYTES_MAX: number = 8 * 1024 * 1024

/**
 * Gathers pieces into groups that are compressed together, each to be a leaf. A group ends after a content whose digest says so, so
 * that a run of the same files becomes the same groups in another layer, as `LeafBoundaries` does it with frames. What a start reads
 * and what it does not read never share a group.
 */
export class CompactGroups {
  #pieces: LayerPiece[] = []
  #bytes = 0
  #isRead: boolean | undefined

  /** Takes the next piece; returns the groups that are complete. */
  push(piece: LayerPiece): LayerPiece[][] {
    const { bytes, content } = piece
    // Headers and padding belong to what is before them.
    const isRead = content === undefined ? this.#isRead : content.isRead
    const isOther = this.#isRead !== undefined && isRead !== this.#isRead
    const ended = isOther || this.#bytes + bytes.length > GROUP_BYTES_MAX ? this.end() : []
    this.#isRead = isRead
    this.#pieces.push(piece)
    this.#bytes += bytes.length
    const isLast =
      content !== undefined &&
      this.#bytes >= GROUP_BYTES_MIN &&
      isDrawn(content.sha256, bytes.length / (GROUP_BYTES_USUAL - GROUP_BYTES_MIN))
    return isLast ? [...ended, ...this.end()] : ended
  }

  /** The tar is over: what is left. */
  end(): LayerPiece[][] {
    const pieces = this.#pieces
    this.#pieces = []
    this.#bytes = 0
    this.#isRead = undefined
    return pieces.length === 0 ? [] : [pieces]
  }
}
